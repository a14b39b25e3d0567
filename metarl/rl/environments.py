"""Gymnasium environments with tasks as one vector environment; errors name the task, seed and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import DISTRIBUTION, ENVIRONMENT, InputError, environment_fault, text_of, users_code
from metarl.core.learner import Spaces
from metarl.core.tasks import Split, draw
from metarl.core.time_limit import TimeLimit
from metarl.rl.fitted_envs import FittedVectorEnv
from metarl.rl.mujoco_warnings import caught
from metarl.rl.mujoco_warnings import diverged as has_diverged
from metarl.rl.spaces import Fit, NotOfItsSpaceError
from metarl.rl.stepping import DIVERGED, RESET_ANSWER, STEP_ANSWER, SUCCESS, number, told, truth, wrong_answer
from metarl.rl.tasks import EnvTaskDistribution, Scene, TaskVectorEnv

Result = TypeVar("Result")


class GymnasiumTasks:
    """Gymnasium's environments, stepped one after another; vector actions are clipped.

    One that has ended stays as it is until the next `reset`, which with `{"reset_mask": bool array [num_envs]}` among
    its options resets only some, as in gymnasium.

    Args:
        tasks: makes the environments and gives them their tasks.
        num_envs: how many.
        timeout: seconds that one call of one environment may take, > 0; None for no limit.

    Attributes:
        envs: the environments that the tasks' `make_env` made, each in a wrapper.

    Raises:
        EnvironmentFaultError: here and in every other method, if an environment raises, hangs, or returns what is no
            observation or reward.
    """

    def __init__(self, tasks: EnvTaskDistribution[Any], num_envs: int, *, timeout: float | None = None) -> None:
        self._limit = TimeLimit(timeout)
        self.num_envs = num_envs
        with self._limit.watching():
            self.envs = [_TaskEnv(tasks, self._limit) for _ in range(num_envs)]
        self.fit = self.envs[0].fit
        self.single_observation_space = self.fit.observation.space
        self.single_action_space = self.fit.action.space
        for env in self.envs:
            env.require_spaces(self.envs[0].spaces)
        space = self.single_observation_space
        self._observations = np.zeros((num_envs, *(space.shape or ())), space.dtype)

    def set_tasks(self, tasks: Sequence[Any]) -> None:
        """One task per environment, from the next reset."""
        for env, task in zip(self.envs, tasks, strict=True):
            env.task = task

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets the environments. Returns no infos: `envs[i].infos` holds those of environment i."""
        seeds = [seed] * self.num_envs if seed is None else seed
        if isinstance(seeds, (int, np.integer)):
            seeds = [seeds + i for i in range(self.num_envs)]
        others = {name: value for name, value in (options or {}).items() if name != "reset_mask"}
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        with self._limit.watching():
            for i in np.flatnonzero(mask).tolist():
                self._observations[i], _ = self.envs[i].reset(seed=seeds[i], options=others or None)
        return self._observations.copy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps the environments that have not ended. The infos are `diverged` and, if any environment gives it,
        `success` with gymnasium's mask `_success`. `envs[i].infos` holds all infos of environment i."""
        space = self.single_action_space
        if isinstance(space, gymnasium.spaces.Box):
            actions = np.clip(actions, space.low, space.high).astype(space.dtype)
        rewards = np.zeros(self.num_envs)
        terminated, truncated, diverged, success, tells = np.zeros((5, self.num_envs), bool)
        with self._limit.watching():
            for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
                if not env.ended:
                    self._observations[i], rewards[i], terminated[i], truncated[i], told = env.step(action)
                    diverged[i] = told["diverged"]
                    tells[i] = told["success"] is not None
                    success[i] = bool(told["success"])
        infos = {"success": success, "_success": tells} if tells.any() else {}
        return self._observations.copy(), rewards, terminated, truncated, {"diverged": diverged, **infos}

    def close(self) -> None:
        for env in self.envs:
            env.close()


class TaskInObservation(EnvTaskDistribution[Any]):
    """A distribution whose environments end every observation with the features of their task: an oracle's.

    Args:
        tasks: the distribution; its `task_features` say what is told.
        timeout: as in `GymnasiumTasks`, for those of its environments that are stepped one by one.

    Raises:
        InputError: if the tasks cannot be told as numbers.
    """

    def __init__(self, tasks: EnvTaskDistribution[Any], *, timeout: float | None = None) -> None:
        self.tasks = tasks
        self.splits = tasks.splits
        self.horizon = tasks.horizon
        self._timeout = timeout
        self._num_features: int | None = None
        first = draw(tasks, 1, np.random.default_rng(0), split="train")[0]
        self._num_features = len(self.task_features(first))

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return self.tasks.sample(num_tasks, rng, split=split)

    def all_tasks(self, split: Split = "test") -> list[Any] | None:
        return self.tasks.all_tasks(split)

    def task_features(self, task: Any) -> NDArray[np.float32]:
        with users_code("task_features", task=task):
            try:
                features = np.asarray(self.tasks.task_features(task), np.float32)
            except TypeError as error:
                if type(self.tasks).task_features is not EnvTaskDistribution.task_features:
                    raise
                raise InputError(f"task = {type(self.tasks).__name__}: {error}") from error
        allowed = (self._num_features,) if self._num_features else features.shape[:1]
        if features.shape != allowed or not features.size or not np.isfinite(features).all():
            length = f", of length {self._num_features}" if self._num_features else " with one length for all tasks"
            what = f"task_features returned {text_of(features, repr):.80}: must be a vector of finite numbers{length}"
            raise environment_fault(what, task=task, seed=None, step=None, whose=DISTRIBUTION)
        return features

    def make_vector_env(self, num_envs: int, *, num_threads: int) -> TaskVectorEnv:
        env = vector_env_of(self.tasks, num_envs, num_threads=num_threads, timeout=self._timeout)
        return _TellingEnv(env, self.task_features, self._num_features or 0)

    def scene(self, task: Any) -> Scene | None:
        return self.tasks.scene(task)

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        return self.tasks.positions(observations[..., : observations.shape[-1] - self._num_features])


class _TellingEnv:
    """`env` with the features of its tasks at the end of its observations."""

    def __init__(self, env: TaskVectorEnv, features: Callable[[Any], NDArray[np.float32]], num_features: int) -> None:
        space = env.single_observation_space
        size = spaces_of(env).observation_size
        assert isinstance(space, gymnasium.spaces.Box)
        bounds = ((space.low, -np.inf), (space.high, np.inf))
        low, high = (np.pad(ends.astype(np.float32), (0, num_features), constant_values=end) for ends, end in bounds)
        told = gymnasium.spaces.Box(low, high, (size + num_features,), np.float32)
        self.single_observation_space: gymnasium.Space[Any] = told
        self.single_action_space = env.single_action_space
        self.num_envs = env.num_envs
        self._env = env
        self._features_of = features
        self._features = np.zeros((env.num_envs, num_features), np.float32)
        self._next = self._features.copy()  # a task holds from the next reset

    def set_tasks(self, tasks: Sequence[Any]) -> None:
        self._env.set_tasks(tasks)
        known = {id(task): self._features_of(task) for task in {id(task): task for task in tasks}.values()}
        for i, task in enumerate(tasks):
            self._next[i] = known[id(task)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observations, infos = self._env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self._features[mask] = self._next[mask]
        return self._told(observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, *rest = self._env.step(actions)
        return self._told(observations), *rest

    def close(self) -> None:
        self._env.close()

    def __getattr__(self, name: str) -> Any:
        """What only some environments have, such as `render_simulation`."""
        if name == "_env":
            raise AttributeError(name)
        return getattr(self._env, name)

    def _told(self, observations: Any) -> NDArray[Any]:
        return np.concatenate([observations, self._features], axis=1)


def vector_env_of(
    tasks: EnvTaskDistribution[Any], num_envs: int, *, num_threads: int = 0, timeout: float | None = None
) -> TaskVectorEnv:
    """`num_envs` environments of `tasks`: those that step together where it has them, gymnasium's own elsewhere.

    Args:
        tasks: the distribution.
        num_envs: how many.
        num_threads: of the simulator, 0 for all cores; does not change the results.
        timeout: seconds that one call of one of gymnasium's environments may take, > 0; None for no limit.
    """
    with users_code("make_vector_env"):
        together = tasks.make_vector_env(num_envs, num_threads=num_threads)
    if together is None:
        return GymnasiumTasks(tasks, num_envs, timeout=timeout)
    try:
        fit = Fit(together.single_observation_space, together.single_action_space, getattr(together, "metadata", {}))
    except InputError:
        together.close()
        raise
    return FittedVectorEnv(together, fit) if fit.changes else together


def fit_of(env: TaskVectorEnv) -> Fit | None:
    """How `vector_env_of` converted the spaces of `env` for a policy; None if it did not convert them."""
    if isinstance(env, _TellingEnv):
        return fit_of(env._env)
    if isinstance(env, GymnasiumTasks):
        return env.fit
    return env.fit if isinstance(env, FittedVectorEnv) else None


def spaces_of(env: TaskVectorEnv) -> Spaces:
    """What a learner must know of the spaces of `env`, which `vector_env_of` made."""
    observations, actions = env.single_observation_space, env.single_action_space
    assert isinstance(observations, gymnasium.spaces.Box)
    if isinstance(actions, gymnasium.spaces.Discrete):
        return Spaces(observations.shape[0], int(actions.n), discrete=True)
    assert isinstance(actions, gymnasium.spaces.Box)
    return Spaces(observations.shape[0], actions.shape[0], discrete=False)


def wrong_environment(env: Any) -> str:
    """What is wrong with the result of `make_env`; "" for a gymnasium environment."""
    if isinstance(env, gymnasium.Env):
        return ""
    advice = ""
    if isinstance(env, type):
        advice = f", such as {env.__name__}()"
    elif isinstance(env, gymnasium.vector.VectorEnv):
        advice = ", one environment. Return a vector environment of your own from make_vector_env"
    elif callable(getattr(env, "step", None)):
        advice = f". Let {type(env).__name__} inherit from it: `class {type(env).__name__}(gymnasium.Env)`"
    return f"make_env returned {text_of(env, repr):.80}: must be a gymnasium.Env{advice}"


class _TaskEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Sets the environment's task before every reset. Its errors name the task, seed and step.

    Attributes:
        task: the task from the next reset on.
        ended: whether a trajectory is over.
        infos: the infos of the last reset or step, unchanged.
    """

    def __init__(self, tasks: EnvTaskDistribution[Any], limit: TimeLimit) -> None:
        self._tasks = tasks
        self._limit = limit
        self._seed: int | None = None
        self._steps: int | None = None
        self._warnings: list[str] = []
        self.task: Any = None
        self.ended = False
        self.infos: Mapping[Any, Any] = {}
        env = self._call("make_env", tasks.make_env)
        wrong = wrong_environment(env)
        if wrong:
            self._fail(wrong)
        super().__init__(env)
        self.spaces = self._call("make_env", self._present_spaces)
        self.fit = Fit(*self.spaces, env.metadata or {})

    def require_spaces(self, spaces: tuple[gymnasium.Space[Any], gymnasium.Space[Any]]) -> None:
        """Fails unless the environment has the `spaces`, of observations and of actions."""
        present = self._call("make_env" if self._steps is None else "reset", self._present_spaces)
        for name, now, before in zip(("observation_space", "action_space"), present, spaces, strict=True):
            if now is not before and now != before:
                self._fail(f"{name} = {now}: must equal that of the first environment, {before}")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.ended = False
        self._seed, self._steps = seed, 0
        if self.task is not None:
            self._call("set_task", self._tasks.set_task, self.env, self.task)
        answer = self._call("reset", self._reset, seed, options)
        self._require(answer, "reset", RESET_ANSWER)
        observation, self.infos = answer
        self.require_spaces(self.spaces)
        return self._observed(observation, "reset"), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Returns only two infos: `diverged`, and `success`, which is None if the environment does not give it."""
        self._steps = (self._steps or 0) + 1
        taken = self.fit.action(action) if self.fit.action.changes else action
        answer = self._call("step", self.env.step, taken)
        broken = has_diverged(self._warnings)
        self._require(answer, "step", STEP_ANSWER)
        observation, reward, *ends, self.infos = answer
        diverged, success = self._call("step", lambda: [told(self.infos, names) for names in (DIVERGED, SUCCESS)])
        broken = broken or bool(diverged)
        paid = number(reward)
        if paid is None:
            self._fail(
                f"step returned the reward {text_of(reward, repr):.80}: must be one number that a float can hold"
            )
        terminated, truncated = (self._flag(name, value) for name, value in zip(STEP_ANSWER[2:4], ends, strict=True))
        self.ended = terminated or truncated or broken
        infos = {"diverged": broken, "success": success}
        return self._observed(observation, "step"), paid, terminated, truncated, infos

    def close(self) -> None:
        self._call("close", self.env.close)

    def _present_spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        return self.env.observation_space, self.env.action_space

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> Any:
        return self.env.reset(seed=seed, options=options)

    def _require(self, answer: Any, where: str, names: Sequence[str]) -> None:
        wrong = wrong_answer(answer, names)
        if wrong:
            self._fail(f"{where} returned {wrong}")

    def _flag(self, name: str, value: Any) -> bool:
        flag = truth(value)
        if flag is None:
            self._fail(f"step returned {name} = {text_of(value, repr):.80}: must be one boolean")
        return flag

    def _observed(self, observation: Any, where: str) -> NDArray[Any]:
        """The observation in the dtype of its space, flattened if the space is not flat."""
        if self.fit.observation.changes:
            try:
                return self.fit.observation(observation)
            except NotOfItsSpaceError as error:
                self._fail(f"{where} returned {error}")
        space = self.spaces[0]
        array = observation if isinstance(observation, np.ndarray) else self._call(where, _array_of, observation)
        if array.shape != space.shape and array.dtype.kind in "OU":
            kind = f"the observation {text_of(observation, repr):.80}"
            self._fail(f"{where} returned {kind}: must be an array of shape {space.shape}, the observation space's")
        if array.shape != space.shape:
            self._fail(
                f"{where} returned an observation of shape {array.shape}: must be {space.shape}, "
                "the observation space's"
            )
        if array.dtype == space.dtype:
            return array
        if array.dtype.kind not in "biuf":
            self._fail(f"{where} returned an observation of dtype {array.dtype}: must be numbers, {space.dtype}")
        with np.errstate(all="ignore"):
            converted = array.astype(space.dtype)
            lost = np.isfinite(array) > np.isfinite(converted)
        if lost.any():
            index = ", ".join(map(str, np.argwhere(lost)[0]))
            self._fail(f"observation[{index}] = {array[lost][0]}: must be finite as {space.dtype}, the space's dtype")
        return converted

    def _call(self, what: str, function: Callable[..., Result], *arguments: Any) -> Result:
        self._limit.restart()
        with (
            caught() as self._warnings,
            users_code(what, task=self.task, seed=self._seed, step=self._steps, whose=ENVIRONMENT),
        ):
            return function(*arguments)

    def _fail(self, what: str) -> NoReturn:
        raise environment_fault(what, task=self.task, seed=self._seed, step=self._steps)


def _array_of(observation: Any) -> NDArray[Any]:
    """`observation` as an array; of one object where its parts are of uneven length."""
    try:
        return np.asarray(observation)
    except ValueError:
        array = np.empty((), object)
        array[()] = observation
        return array
