"""stable-baselines3 on task distributions, and agents of MetaRL where stable-baselines3 expects a model.

Antonin Raffin et al.: Stable-Baselines3: Reliable Reinforcement Learning Implementations. JMLR 22(268), 2021.

`TaskVecEnv` is a batch of environments as SB3 wants it, so that any of its algorithms trains on one task or on the
whole distribution; in `TrialVecEnv` an episode is a whole trial, what sb3-contrib's RecurrentPPO needs to be RL². The
other way round, `AdaptedPredictor` and `TrialPredictor` have the `predict` of SB3's models, for `evaluate_policy`:

    env = VecMonitor(TaskVecEnv(HalfCheetahDir(), 8, task=Direction(1), seed=0))
    PPO("MlpPolicy", env, seed=0).learn(100_000)
    evaluate_policy(AdaptedPredictor(maml, env.action_space, state=adapted, task=3), env)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
from torch import Tensor

from metarl.agents.rl2 import RL2
from metarl.core.errors import ENVIRONMENT, InputError, one_line, require, users_code
from metarl.core.learner import Spaces
from metarl.core.seeds import Purpose, generator
from metarl.core.tasks import Split, draw
from metarl.core.trees import to_device, tree_map
from metarl.rl.checks import check_step
from metarl.rl.environments import GymnasiumTasks, spaces_of, vector_env_of
from metarl.rl.policy_gradient import AdaptivePolicy
from metarl.rl.spaces import ActionFit, own_units
from metarl.rl.stepping import mask_of, reset_all, step_all
from metarl.rl.tasks import EnvTaskDistribution, horizon_of
from metarl.rl.trials import TrialState

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Infos = list[dict[str, Any]]


class _Step(NamedTuple):
    """What a step led to, before anything is reset: n sub-environments."""

    observations: Floats  # [n, observation_size]
    rewards: Floats  # [n]
    terminated: Bools  # [n]
    truncated: Bools  # [n], never together with `terminated`
    infos: Infos


class TaskVecEnv(VecEnv):
    """Environments of a task distribution as a `VecEnv` of SB3.

    A sub-environment that ends is reset in the same step; `infos[i]["terminal_observation"]` is what it ended with and
    `infos[i]["TimeLimit.truncated"]` whether it would have gone on: at the horizon, or where the simulation broke. The
    step that breaks it pays 0 and ends with the observation before it. Actions are clipped by the environments. If
    a family defines success, `infos[i]["is_success"]` says at an episode's end whether any of its steps was a success
    (see `metarl.rl.stepping`). Other infos are passed on unchanged. Only an `episode` that is not from a wrapper of
    SB3 or gymnasium is removed.

    As in SB3's own, sub-environment i is seeded with seed + i at a `reset` after `seed`, and otherwise goes on from
    where it is: equal seeds give equal bits, for any number of threads. It draws its tasks itself, a fresh one at every
    reset. `get_attr("task")` tells the present ones; `set_attr("task", task)` fixes one from the next reset on, and
    None draws again.

    Args:
        distribution: any; spaces that are not flat are made so (`metarl.rl.spaces`).
        num_envs: sub-environments, >= 1.
        tasks: a list with one task for each sub-environment, or one task for all that is not a list. None draws them.
        task: one task for all, of any type.
        split: which tasks are drawn.
        seed: >= 0; later ones by `seed`.
        num_threads: of the simulator, 0 for all cores.
        timeout: seconds that one call of one of gymnasium's environments may take; None for no limit.

    Raises:
        InputError: the spaces cannot be used; a list of tasks of another length, or what may be one task or several;
            an environment of the distribution's own that cannot reset some of its sub-environments.
    """

    def __init__(
        self,
        distribution: EnvTaskDistribution[Any],
        num_envs: int,
        *,
        tasks: Any = None,
        task: Any = None,
        split: Split = "train",
        seed: int = 0,
        num_threads: int = 0,
        timeout: float | None = None,
    ) -> None:
        is_family = isinstance(distribution, EnvTaskDistribution)
        require(is_family, "distribution", distribution, "an EnvTaskDistribution, such as HalfCheetahDir()")
        is_number = isinstance(num_envs, (int, np.integer)) and num_envs >= 1
        require(is_number, "num_envs", num_envs, "an integer >= 1")
        require(task is None or tasks is None, "tasks", tasks, "left out where `task` is given")
        fixed = [task] * num_envs if tasks is None else _one_each(tasks, num_envs, distribution)
        self.distribution, self.split = distribution, split
        self._env = vector_env_of(distribution, num_envs, num_threads=num_threads, timeout=timeout)
        self.spaces = spaces_of(self._env)
        mode = getattr(self._env, "metadata", {}).get("autoreset_mode")
        if not (isinstance(self._env, GymnasiumTasks) or mode == AutoresetMode.DISABLED):
            self._env.close()
            raise InputError(
                f"{type(self._env).__name__}.metadata['autoreset_mode'] = {mode}: must be AutoresetMode.DISABLED, with "
                "a reset that understands the option reset_mask: stable-baselines3 resets one sub-environment at a time"
            )
        self._horizon = horizon_of(distribution)
        self._fixed: list[Any] = fixed
        self._tasks: list[Any] = [None] * num_envs
        self._rngs: dict[int, np.random.Generator] = {}
        self._elapsed = np.zeros(num_envs, np.int64)
        self._success: list[bool | None] = [None] * num_envs
        self._last: Floats | None = None
        self._actions: NDArray[Any] = np.zeros(0)
        super().__init__(num_envs, self._observation_space(), own_units(self._env.single_action_space))
        self.seed(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds sub-environment i with seed + i at the next `reset`; None: with numbers that nobody knows."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        require(seed >= 0, "seed", seed, "an integer >= 0")
        return super().seed(seed)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Refuses any: what varies between resets is the task."""
        require(not options, "options", options, "left out: environments vary by their task")

    def reset(self) -> Floats:
        for i, seed in enumerate(self._seeds):
            if seed is not None:
                self._rngs[i] = generator(seed, 0, Purpose.TASKS, slot=i)
        everyone = np.ones(self.num_envs, bool)
        self._last = np.zeros((self.num_envs, self.spaces.observation_size), np.float32)
        observations = self._begin(everyone, fresh=everyone, seeds=self._seeds)
        self._reset_seeds()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[Floats, Floats, Bools, Infos]:
        observations, rewards, terminated, truncated, infos = self._advance()
        ended = terminated | truncated
        for i, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncated[i])
            if ended[i]:
                info["terminal_observation"] = observations[i]
        if ended.any():
            observations = self._begin(ended, fresh=ended)
        return observations, rewards, ended, infos

    def close(self) -> None:
        self._env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Of each sub-environment; of a batch that steps together, whatever it has but `task` belongs to all."""
        chosen = list(self._get_indices(indices))
        if attr_name == "task":
            return [self._tasks[i] for i in chosen]
        if attr_name == "render_mode" and not isinstance(self._env, GymnasiumTasks):
            return [None] * len(chosen)
        return [_attribute(target, attr_name) for target in self._targets(chosen)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """As `get_attr`; a batch's own attribute can be set for all sub-environments only."""
        chosen = list(self._get_indices(indices))
        if attr_name == "task":
            for i in chosen:
                self._fixed[i] = value
            return
        if not isinstance(self._env, GymnasiumTasks) and len(set(chosen)) < self.num_envs:
            raise ValueError(f"{attr_name} belongs to all {self.num_envs} sub-environments; set it without indices")
        for target in self._targets(chosen):
            setattr(target, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of each sub-environment; of a batch that steps together, once, with one answer for all."""
        targets = self._targets(list(self._get_indices(indices)))
        answers: dict[int, Any] = {}
        for target in targets:
            if id(target) not in answers:
                answers[id(target)] = _attribute(target, method_name)(*method_args, **method_kwargs)
        return [answers[id(target)] for target in targets]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        targets = self._targets(list(self._get_indices(indices)))
        return [isinstance(target, gymnasium.Env) and is_wrapped(target, wrapper_class) for target in targets]

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """What gymnasium's environments draw in their `render_mode`; a batch that steps together draws none."""
        if isinstance(self._env, GymnasiumTasks):
            return [env.render() for env in self._env.envs]  # type: ignore[misc]
        return [None] * self.num_envs

    def _observation_space(self) -> gymnasium.spaces.Box:
        space = self._env.single_observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        return gymnasium.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)

    def _targets(self, indices: list[int]) -> list[Any]:
        return [self._env.envs[i] if isinstance(self._env, GymnasiumTasks) else self._env for i in indices]

    def _begin(self, chosen: Bools, *, fresh: Bools, seeds: Sequence[int | None] | None = None) -> Floats:
        """Resets the `chosen` sub-environments, the `fresh` ones among them with their next task; all observations."""
        assert self._last is not None
        before = list(self._tasks)
        for i in np.flatnonzero(fresh).tolist():
            task = self._fixed[i]
            self._tasks[i] = self._drawn(i) if task is None else task
        if any(new is not old for new, old in zip(self._tasks, before, strict=True)):
            with users_code("set_tasks", whose=ENVIRONMENT):
                self._env.set_tasks(self._tasks)
        given = [None] * self.num_envs if seeds is None else list(seeds)
        observations, infos = reset_all(self._env, seed=given, options={"reset_mask": chosen.copy()})
        self._elapsed[chosen] = 0
        observations = self._checked(observations, None, chosen)
        for i, info in enumerate(self._infos(infos)):
            if chosen[i]:
                self.reset_infos[i] = info
                self._success[i] = None
        self._last = np.where(chosen[:, np.newaxis], observations, self._last).astype(np.float32)
        return self._last

    def _drawn(self, i: int) -> Any:
        return draw(self.distribution, 1, self._rngs[i], split=self.split)[0]

    def _advance(self) -> _Step:
        """Steps every sub-environment and resets none."""
        if self._last is None:
            raise gymnasium.error.ResetNeeded("step was called before the first reset")
        stepped = step_all(self._env, self._actions, step=None)
        diverged = stepped.diverged
        self._elapsed += 1
        observations = self._checked(stepped.observations, stepped.rewards, ~diverged)
        terminated = stepped.terminated & ~diverged
        truncated = (stepped.truncated | diverged | (self._elapsed >= self._horizon)) & ~terminated
        infos = self._infos(stepped.infos)
        for i, info in enumerate(infos):
            if stepped.tells_success[i]:
                self._success[i] = bool(self._success[i]) or bool(stepped.success[i])
            monitored = info.get("episode")  # SB3 takes it for its Monitor's, whatever it is
            if not (isinstance(monitored, dict) and {"r", "l"} <= monitored.keys()):
                info.pop("episode", None)
            if terminated[i] or truncated[i]:
                info.pop("is_success", None)  # SB3 averages it, whatever it is
                if self._success[i] is not None:
                    info["is_success"] = self._success[i]
        self._last = np.where(diverged[:, np.newaxis], self._last, observations).astype(np.float32)
        rewards = np.where(diverged, 0.0, stepped.rewards).astype(np.float32)
        return _Step(self._last, rewards, terminated, truncated, infos)

    def _infos(self, infos: Mapping[Any, Any]) -> Infos:
        """The infos of each sub-environment, each in a new dict."""
        if isinstance(self._env, GymnasiumTasks):
            return [dict(env.infos) for env in self._env.envs]
        return _per_env(infos, self.num_envs)

    def _checked(self, observations: Any, rewards: Any, live: Bools) -> NDArray[Any]:
        return check_step(
            observations,
            rewards,
            live,
            observation_size=self.spaces.observation_size,
            tasks=self._tasks,
            seeds=[None] * self.num_envs,
            step=self._elapsed,
        )


class TrialVecEnv(TaskVecEnv):
    """`TaskVecEnv` in which a whole trial, several episodes of one task in a row, is one episode.

    Observations are RL²'s inputs, [observation_size + action_size + 2]: the environment's, the action before (as it was
    given; one-hot where discrete), the reward that followed, and 1 where that ended an episode; zeros where a trial
    begins. Inside a trial an end, terminated or truncated, is no end to SB3; the next episode's first observation
    follows, of the same task, with the last step's action and reward. The trial's end is terminal with value 0,
    whatever ended its last episode: a trial is a finite task, and its return is what RL² maximises. SB3 counts the
    `is_success` of a trial's last episode.

    Args:
        distribution: any; spaces that are not flat are made so (`metarl.rl.spaces`).
        num_envs: sub-environments, >= 1.
        episodes_per_trial: >= 1.
        settings: the others of `TaskVecEnv`; a fresh task is drawn for every trial.
    """

    def __init__(
        self, distribution: EnvTaskDistribution[Any], num_envs: int, *, episodes_per_trial: int, **settings: Any
    ) -> None:
        require(episodes_per_trial >= 1, "episodes_per_trial", episodes_per_trial, "an integer >= 1")
        self.episodes_per_trial = episodes_per_trial
        self._finished = np.zeros(num_envs, np.int64)
        super().__init__(distribution, num_envs, **settings)

    def reset(self) -> Floats:
        self._finished[:] = 0
        nothing = np.zeros((self.num_envs, self.spaces.action_size + 2), np.float32)
        return np.concatenate((super().reset(), nothing), axis=1)

    def step_wait(self) -> tuple[Floats, Floats, Bools, Infos]:
        observations, rewards, terminated, truncated, infos = self._advance()
        ended = terminated | truncated
        taken = np.eye(self.spaces.action_size)[self._actions] if self.spaces.discrete else self._actions
        before = np.column_stack((taken, rewards, ended)).astype(np.float32)
        self._finished += ended
        over = self._finished >= self.episodes_per_trial
        for i, info in enumerate(infos):
            info["TimeLimit.truncated"] = False
            if over[i]:
                info["terminal_observation"] = np.concatenate((observations[i], before[i]))
        if ended.any():
            observations = self._begin(ended, fresh=over)
            before[over] = 0.0
            self._finished[over] = 0
        return np.concatenate((observations, before), axis=1), rewards, over, infos

    def _observation_space(self) -> gymnasium.spaces.Box:
        size = self.spaces.observation_size + self.spaces.action_size + 2
        return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)


class _Predictor:
    """What both predictors share: shapes, random numbers, and the bounds of actions."""

    environment = ""  # whose observations it takes

    def __init__(self, spaces: Spaces, action_space: Any, seed: int | np.random.Generator) -> None:
        call = f"{type(self).__name__}(learner, env.action_space)"
        if action_space is None:
            raise InputError(f"action_space: missing; write {call}")
        is_space = isinstance(action_space, gymnasium.Space)
        require(is_space, "action_space", action_space, f"a gymnasium space; write {call}")
        self._fit = ActionFit(action_space)
        chosen = self._fit.space
        discrete = isinstance(chosen, gymnasium.spaces.Discrete)
        size = int(chosen.n) if isinstance(chosen, gymnasium.spaces.Discrete) else chosen.shape
        expected = spaces.action_size if spaces.discrete else (spaces.action_size,)
        fits = discrete == spaces.discrete and size == expected
        kind = f"Discrete({expected})" if spaces.discrete else f"a Box of shape {expected}"
        require(fits, "action_space", action_space, f"{kind}, as the agent was trained for")
        self.spaces, self.action_space = spaces, action_space
        self._rng = np.random.default_rng(seed)

    def _rows(self, observation: Any, size: int) -> tuple[Tensor, bool]:
        """Observations as [1, n, size], and whether there was but one, without the axis of a batch."""
        try:
            rows = np.asarray(observation, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"observation: {one_line(error)}; must be numbers, [{size}] or [n, {size}]") from error
        allowed = f"[{size}] or [n, {size}]: an observation of {self.environment}"
        require(rows.ndim in (1, 2) and rows.shape[-1] == size, "observation.shape", rows.shape, allowed)
        return torch.from_numpy(np.atleast_2d(rows)[np.newaxis].copy()), rows.ndim == 1

    def _noise(self, num_rows: int) -> Tensor:
        if self.spaces.discrete:
            return torch.from_numpy(self._rng.random((1, num_rows), dtype=np.float32))
        shape = (1, num_rows, self.spaces.action_size)
        return torch.from_numpy(self._rng.standard_normal(shape, dtype=np.float32))

    def _actions(self, drawn: Tensor, single: bool) -> NDArray[Any]:
        actions: NDArray[Any] = drawn[0].numpy()
        if self._fit.changes:
            taken: NDArray[Any] = self._fit(actions[0]) if single else self._fit(actions, batch=True)
            return taken
        if isinstance(self.action_space, gymnasium.spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        return actions[0] if single else actions


def _require_learner(learner: Any, kind: type[Any], allowed: str) -> None:
    """Refuses a `learner` that is not of `kind`. The message says what to write instead."""
    advice = ""
    if isinstance(learner, (str, Path)):
        advice = f"; write metarl.load({str(learner)!r})"
    elif isinstance(learner, (RL2, AdaptivePolicy)):
        advice = f"; write {TrialPredictor.__name__ if isinstance(learner, RL2) else AdaptedPredictor.__name__}"
    elif isinstance(learner, type):
        advice = "; write an object of the class, such as metarl.load(run_dir)"
    given = learner if isinstance(learner, (str, Path)) else one_line(type(learner).__name__)
    require(isinstance(learner, kind), "learner", str(given), f"{allowed}{advice}")


class AdaptedPredictor(_Predictor):
    """An agent that adapts by gradient steps, as one of SB3's models: one adapted policy.

    Args:
        learner: the agent.
        action_space: of the environment that the actions are for: `TaskVecEnv`'s, or that of an environment as the
            user made it. Actions are clipped to it, as SB3's models do, and rescaled as in training.
        state: adapted; None for the meta-parameters as they are.
        task: whose policy, a place on the state's task axis.
        seed: of the sampling noise, or a generator of it.

    Raises:
        InputError: the agent remembers instead (`TrialPredictor`); no such task in the state; no action space, or
            another one than in training.
    """

    environment = "TaskVecEnv"

    def __init__(
        self,
        learner: AdaptivePolicy,
        action_space: gymnasium.Space[Any] | None = None,
        *,
        state: Any = None,
        task: int = 0,
        seed: int | np.random.Generator = 0,
    ) -> None:
        _require_learner(learner, AdaptivePolicy, "an RL agent that takes gradient steps")
        super().__init__(learner.spaces, action_space, seed)
        fresh = learner.begin(1)
        adapted = fresh if state is None else state
        fits = isinstance(adapted, Mapping) and adapted.keys() == fresh.keys()
        require(fits, "state", type(adapted).__name__, "an adapted state of this learner, such as learner.begin(1)")
        num_tasks = len(next(iter(adapted.values())))
        is_task = isinstance(task, (int, np.integer)) and 0 <= task < num_tasks
        require(is_task, "task", task, f"an integer in [0, {num_tasks}), one of the tasks of the state")
        self._learner = learner
        self._state = to_device(tree_map(lambda value: value[task : task + 1].detach(), adapted), "cpu")

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], Any]:
        """As SB3's.

        Args:
            observation: [observation_size], or [n, observation_size], as `TaskVecEnv` gives them, or an environment in
                `metarl.rl.fitted_envs.fitted(env)`: flat, and integers rescaled.
            state: returned as it is.
            episode_start: not used.
            deterministic: the likeliest action instead of a random one.

        Returns:
            Actions [n, action_size] or, discrete, [n], without n for a single observation; and `state`.
        """
        rows, single = self._rows(observation, self.spaces.observation_size)
        with torch.no_grad():
            distribution = self._learner.distribution(self._state, rows)
            drawn = distribution.mode() if deterministic else distribution.sample(self._noise(rows.shape[1]))
        return self._actions(drawn, single), state


class TrialPredictor(_Predictor):
    """RL² as one of SB3's recurrent models, on the observations of `TrialVecEnv`.

    The state that `predict` returns holds the memory and the last action, before it was clipped: this is what RL²
    remembers in training, and it goes in place of the observation's.

    Args:
        learner: the agent.
        action_space: of the environment that the actions are for: `TaskVecEnv`'s, or that of an environment as the
            user made it. Actions are clipped to it, as SB3's models do, and rescaled as in training.
        seed: of the sampling noise, or a generator of it.

    Raises:
        InputError: the agent does not remember (`AdaptedPredictor`); no action space, or another one than in training.
    """

    environment = "TrialVecEnv(distribution, num_envs, episodes_per_trial=...)"

    def __init__(
        self, learner: RL2, action_space: gymnasium.Space[Any] | None = None, *, seed: int | np.random.Generator = 0
    ) -> None:
        _require_learner(learner, RL2, "RL2, or one derived from it")
        super().__init__(learner.spaces, action_space, seed)
        self._learner = learner

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        """As SB3's recurrent ones.

        Args:
            observation: [observation_size + action_size + 2], or with an axis of n in front.
            state: what the step before returned, None where all trials begin.
            episode_start: bool [n], where a trial begins: its memory is cleared. None: nowhere.
            deterministic: the likeliest action instead of a random one.

        Returns:
            Actions [n, action_size] or, discrete, [n], without n for a single observation; and the next state, arrays
            [n, ...].
        """
        sizes = [self.spaces.observation_size, self.spaces.action_size, 1, 1]
        rows, single = self._rows(observation, sum(sizes))
        inputs, _, reward, done = torch.split(rows, sizes, dim=-1)
        trial = self._before(rows.shape[1], state, episode_start)
        trial = trial._replace(reward=reward[..., 0], done=done[..., 0])
        with torch.no_grad():
            distribution, _, trial = self._learner.distribution(trial, inputs)
            drawn = distribution.mode() if deterministic else distribution.sample(self._noise(rows.shape[1]))
            trial = self._learner.observe(trial, drawn, trial.reward, trial.over, trial.over)
        return self._actions(drawn, single), tuple(part[0].numpy() for part in (*trial.memory, trial.action))

    def _before(self, num_rows: int, state: tuple[NDArray[Any], ...] | None, starts: Any) -> TrialState:
        """The trials so far, cleared where one begins: a memory that has seen nothing is zero."""
        fresh = to_device(self._learner.begin(1), "cpu")
        fresh = tree_map(lambda part: part.expand(1, num_rows, *part.shape[2:]), fresh)
        if state is None:
            return fresh
        parts = [torch.from_numpy(part.copy()).unsqueeze(0) for part in state]
        if starts is not None:
            for part in parts:
                part[0, torch.from_numpy(np.asarray(starts, bool))] = 0
        return fresh._replace(memory=tuple(parts[:-1]), action=parts[-1])


def _attribute(target: Any, name: str) -> Any:
    return target.get_wrapper_attr(name) if isinstance(target, gymnasium.Env) else getattr(target, name)


def _per_env(infos: Mapping[Any, Any], num_envs: int) -> Infos:
    """The infos of a vector environment, as one dict for each sub-environment.

    A value that is not a sequence with one entry for each goes to all of them.
    """
    rows: Infos = [{} for _ in range(num_envs)]
    for name, values in infos.items():
        if isinstance(name, str) and name.startswith("_") and name[1:] in infos:
            continue
        parts = _per_env(values, num_envs) if isinstance(values, Mapping) else values
        each = isinstance(parts, (list, tuple)) or (isinstance(parts, np.ndarray) and parts.ndim > 0)
        for i in np.flatnonzero(mask_of(infos, name, num_envs)).tolist():
            rows[i][name] = parts[i] if each and len(parts) == num_envs else parts
    return rows


def _one_each(tasks: Any, num_envs: int, distribution: EnvTaskDistribution[Any]) -> list[Any]:
    """`num_envs` tasks, from a list of them, or from one task for all that is not a list.

    Raises:
        InputError: a list of another length; one task that is a list; several tasks that are no list.
    """
    if not isinstance(tasks, (list, tuple, np.ndarray)):
        return [tasks] * num_envs
    like = draw(distribution, 1, np.random.default_rng(0), split="train")[0]
    are_several = all(_alike(task, like) for task in tasks) and not _alike(tasks, like)
    if not isinstance(tasks, list):
        require(not are_several, "tasks", tasks, "a list of tasks, tasks=[...]; or one task for all, task=...")
        return [tasks] * num_envs
    is_one = _alike(tasks, like) and not are_several
    require(not is_one, "tasks", tasks, "a list of tasks; write task=... for one task that is a list")
    allowed = f"one task, task=..., or a list of {num_envs}: one per sub-environment"
    require(len(tasks) == num_envs, "tasks", tasks, allowed)
    return tasks.copy()


def _alike(task: Any, like: Any) -> bool:
    """Whether `task` has the same form as the task `like`."""
    if isinstance(like, np.ndarray):
        return isinstance(task, np.ndarray) and task.shape == like.shape
    if isinstance(like, (list, tuple)):
        same = isinstance(task, type(like)) and len(task) == len(like)
        return same and all(_alike(part, of) for part, of in zip(task, like, strict=True))
    return isinstance(task, type(like)) or (isinstance(task, Real) and isinstance(like, Real))
