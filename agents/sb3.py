"""Task distributions as environments of stable-baselines3.

Antonin Raffin et al.: Stable-Baselines3: Reliable Reinforcement Learning Implementations. JMLR 22(268), 2021.

`TaskVecEnv` is a batch of environments as a `VecEnv` of SB3, so that any of its algorithms trains on one task or on the
whole distribution. In `TrialVecEnv` an episode is a whole trial; with it, sb3-contrib's RecurrentPPO is RL². The
opposite direction is in `metarl.agents.predictors`: `AdaptedPredictor` and `TrialPredictor` have the `predict` of SB3's
models, for `evaluate_policy`:

    env = VecMonitor(TaskVecEnv(HalfCheetahDir(), 8, task=Direction(1), seed=0))
    PPO("MlpPolicy", env, seed=0).learn(100_000)
    evaluate_policy(AdaptedPredictor(maml, env.action_space, state=adapted, task=3), env)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from metarl.agents.predictors import AdaptedPredictor as AdaptedPredictor
from metarl.agents.predictors import TrialPredictor as TrialPredictor
from metarl.core.errors import ENVIRONMENT, InputError, require, users_code
from metarl.core.seeds import Purpose, generator
from metarl.core.tasks import Split, draw
from metarl.rl.checks import check_step
from metarl.rl.environments import spaces_of, vector_env_of
from metarl.rl.gymnasium_tasks import GymnasiumTasks
from metarl.rl.spaces import own_units
from metarl.rl.stepping import mask_of, reset_all, step_all
from metarl.rl.tasks import EnvTaskDistribution, horizon_of, metadata_of, unwrapped

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Infos = list[dict[str, Any]]
Array = NDArray[Any]
Family = EnvTaskDistribution[Any]


class _Step(NamedTuple):
    """The results of a step of n sub-environments, before any of them is reset."""

    observations: Floats  # [n, observation_size]
    rewards: Floats  # [n]
    terminated: Bools  # [n]
    truncated: Bools  # [n], never together with `terminated`
    infos: Infos


class TaskVecEnv(VecEnv):
    """Environments of a task distribution as a `VecEnv` of SB3.

    A sub-environment that ends is reset in the same step. Its infos then hold:

    - `terminal_observation`: the last observation of the episode;
    - `TimeLimit.truncated`: true if the episode ended at the horizon, or because the simulation diverged. The step that
      diverges has reward 0, and the observation before it is the last one;
    - `is_success`, if the family defines success: whether any step of the episode was a success (see
      `metarl.rl.stepping`).

    Other infos are passed on unchanged. Only an `episode` that is not from a wrapper of SB3 or gymnasium is removed.
    The environments clip the actions.

    As in SB3's own environments, sub-environment i is seeded with seed + i at a `reset` after `seed`. At other resets
    its generator continues. Equal seeds give equal bits, for any number of threads. Every reset draws a fresh task.
    `get_attr("task")` returns the present tasks. `set_attr("task", task)` fixes a task from the next reset on; with
    None, tasks are drawn again.

    Args:
        distribution: any. Spaces that are not flat are flattened (`metarl.rl.spaces`).
        num_envs: sub-environments, >= 1.
        tasks: a list with one task for each sub-environment, or one task for all that is not a list. None draws them.
        task: one task for all, of any type.
        split: the split that tasks are drawn from.
        seed: >= 0. The method `seed` sets later ones.
        num_threads: threads of the simulator, 0 for all cores.
        timeout: seconds that one call of one of gymnasium's environments may take; None for no limit.

    Raises:
        InputError: the spaces cannot be used; a list of tasks has another length; `tasks` may mean one task or several;
            the family's own vector environment cannot reset single sub-environments.
    """

    def __init__(
        self,
        distribution: Family,
        num_envs: int,
        *,
        tasks: object = None,
        task: object = None,
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
        mode = metadata_of(self._env).get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            self._env.close()
            name = type(unwrapped(self._env)).__name__
            raise InputError(
                f"{name}.metadata['autoreset_mode'] = {mode}: must be AutoresetMode.DISABLED, with "
                "a reset that understands the option reset_mask: stable-baselines3 resets one sub-environment at a time"
            )
        self._horizon = horizon_of(distribution)
        self._fixed: list[object] = fixed
        self._tasks: list[object] = [None] * num_envs
        self._rngs: dict[int, np.random.Generator] = {}
        self._elapsed = np.zeros(num_envs, np.int64)
        self._success: list[bool | None] = [None] * num_envs
        self._last: Floats | None = None
        self._actions: Array = np.zeros(0)
        super().__init__(num_envs, self._observation_space(), own_units(self._env.single_action_space))
        self.seed(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds sub-environment i with seed + i at the next `reset`; None draws a random seed."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        require(seed >= 0, "seed", seed, "an integer >= 0")
        return super().seed(seed)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Refuses all options: only the task varies between resets."""
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

    def step_async(self, actions: Array) -> None:
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
        """The attribute of each sub-environment. In a batch that steps together, all share all but `task`."""
        chosen = list(self._get_indices(indices))
        if attr_name == "task":
            return [self._tasks[i] for i in chosen]
        if attr_name == "render_mode" and not isinstance(self._env, GymnasiumTasks):
            return [None] * len(chosen)
        return [_attribute(target, attr_name) for target in self._targets(chosen)]

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """As `get_attr`. An attribute that a batch shares can only be set for all sub-environments."""
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
        self, method_name: str, *method_args: object, indices: VecEnvIndices = None, **method_kwargs: object
    ) -> list[Any]:
        """Calls a method of each sub-environment. A batch that steps together is called once, for all."""
        targets = self._targets(list(self._get_indices(indices)))
        answers: dict[int, Any] = {}
        for target in targets:
            if id(target) not in answers:
                answers[id(target)] = _attribute(target, method_name)(*method_args, **method_kwargs)
        return [answers[id(target)] for target in targets]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        targets = self._targets(list(self._get_indices(indices)))
        return [isinstance(target, gymnasium.Env) and is_wrapped(target, wrapper_class) for target in targets]

    def get_images(self) -> Sequence[Array | None]:
        """The images of gymnasium's environments in their `render_mode`; None for a batch that steps together."""
        if isinstance(self._env, GymnasiumTasks):
            return [env.render() for env in self._env.envs]  # type: ignore[misc]
        return [None] * self.num_envs

    def _observation_space(self) -> gymnasium.spaces.Box:
        space = self._env.single_observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        return gymnasium.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)

    def _targets(self, indices: list[int]) -> list[object]:
        env = self._env
        return [env.envs[i] if isinstance(env, GymnasiumTasks) else unwrapped(env) for i in indices]

    def _begin(self, chosen: Bools, *, fresh: Bools, seeds: Sequence[int | None] | None = None) -> Floats:
        """Resets the `chosen` sub-environments, the `fresh` ones among them with their next task.

        Returns:
            The observations of all sub-environments.
        """
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

    def _drawn(self, i: int) -> object:
        return draw(self.distribution, 1, self._rngs[i], split=self.split)[0]

    def _advance(self) -> _Step:
        """Steps all sub-environments, without resets."""
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
            if stepped.success_known[i]:
                self._success[i] = bool(self._success[i]) or bool(stepped.success[i])
            monitored = info.get("episode")  # SB3 expects that its Monitor wrote it
            if not (isinstance(monitored, dict) and {"r", "l"} <= monitored.keys()):
                info.pop("episode", None)
            if terminated[i] or truncated[i]:
                info.pop("is_success", None)  # SB3 averages any value under this name
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

    def _checked(self, observations: Array, rewards: Array | None, live: Bools) -> Array:
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

    Observations are the inputs of RL², [observation_size + action_size + 2]: the observation of the environment; the
    last action as it was given, one-hot if discrete; its reward; and 1 if it ended an episode. The last three are zero
    at the start of a trial.

    The end of an episode inside a trial, terminated or truncated, is not an end for SB3. The first observation of the
    next episode follows, of the same task, with the action and reward of the last step. A trial always ends as
    terminated, with value 0: a trial is a finite task, and RL² maximises its return. `is_success` belongs to a trial's
    last episode.

    Args:
        distribution: any. Spaces that are not flat are flattened (`metarl.rl.spaces`).
        num_envs: sub-environments, >= 1.
        episodes_per_trial: >= 1.
        settings: other arguments of `TaskVecEnv`. Every trial has a fresh task.
    """

    def __init__(self, distribution: Family, num_envs: int, *, episodes_per_trial: int, **settings: Any) -> None:
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


def _attribute(target: object, name: str) -> Any:
    return target.get_wrapper_attr(name) if isinstance(target, gymnasium.Env) else getattr(target, name)


def _per_env(infos: Mapping[Any, Any], num_envs: int) -> Infos:
    """The infos of a vector environment, as one dict for each sub-environment.

    A sequence with one entry per sub-environment is divided among them. Any other value goes to all.
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


def _one_each(tasks: object, num_envs: int, distribution: Family) -> list[object]:
    """`num_envs` tasks, from a list of them, or from one task for all that is not a list.

    Raises:
        InputError: a list of another length; one task that is a list; several tasks that are not a list.
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


def _alike(task: object, like: object) -> bool:
    """Whether `task` has the same form as the task `like`."""
    if isinstance(like, np.ndarray):
        return isinstance(task, np.ndarray) and task.shape == like.shape
    if isinstance(like, (list, tuple)):
        if not (isinstance(task, (list, tuple)) and isinstance(task, type(like)) and len(task) == len(like)):
            return False
        return all(_alike(part, of) for part, of in zip(task, like, strict=True))
    return isinstance(task, type(like)) or (isinstance(task, Real) and isinstance(like, Real))
