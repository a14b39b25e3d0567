"""Any gymnasium environments with tasks as one vector environment; what they do wrong is said with task, seed and step.

A call of an environment that takes longer than a limit is broken off with a `TimeoutError` raised where it hangs. That
is done by SIGALRM: on POSIX, in the main thread, and for code that comes back to Python now and then; elsewhere there
is no limit.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any, NoReturn, TypeVar, cast

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from metarl.errors import InputError, RunError, environment_fault
from metarl.learner import Spaces
from metarl.mujoco_warnings import caught, diverged
from metarl.tasks import EnvTaskDistribution, Scene, Split, TaskVectorEnv

Result = TypeVar("Result")


class GymnasiumTasks:
    """Environments stepped by gymnasium's own `SyncVectorEnv`; vector actions are clipped.

    One that has ended stays as it is until the next `reset`, which with `{"reset_mask": bool array [num_envs]}` among
    its options resets only some, as in gymnasium.

    Args:
        tasks: makes the environments and gives them their tasks.
        num_envs: how many.
        timeout: seconds that one call of one environment may take, > 0; None for no limit.

    Raises:
        EnvironmentFaultError: here and in every other method, if an environment raises, hangs, or returns what is no
            observation or reward.
    """

    def __init__(self, tasks: EnvTaskDistribution[Any], num_envs: int, *, timeout: float | None = None) -> None:
        self._limit = TimeLimit(timeout)
        with self._limit.watching():
            self._vector: SyncVectorEnv[Any, Any] = SyncVectorEnv([lambda: _TaskEnv(tasks, self._limit)] * num_envs)
        self.num_envs = num_envs
        self.single_observation_space = self._vector.single_observation_space
        self.single_action_space = self._vector.single_action_space

    @property
    def envs(self) -> list[gymnasium.Env[Any, Any]]:
        """The environments, as the tasks' `make_env` made them, in a wrapper."""
        return self._vector.envs

    def set_tasks(self, tasks: Sequence[Any]) -> None:
        """One task per environment, from the next reset."""
        self._vector.set_attr("task", list(tasks))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        for i in np.flatnonzero(mask):
            cast(_TaskEnv, self._vector.envs[i]).ended = False
        with self._limit.watching():
            return self._vector.reset(seed=cast(Any, seed), options=None if options is None else dict(options))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        space = self.single_action_space
        if isinstance(space, gymnasium.spaces.Box):
            actions = np.clip(actions, space.low, space.high).astype(space.dtype)
        with self._limit.watching():
            return self._vector.step(actions)

    def close(self) -> None:
        self._vector.close()


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
        self._num_features = len(self.task_features(tasks.sample(1, np.random.default_rng(0))[0]))

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return self.tasks.sample(num_tasks, rng, split=split)

    def all_tasks(self, split: Split = "test") -> list[Any] | None:
        return self.tasks.all_tasks(split)

    def task_features(self, task: Any) -> NDArray[np.float32]:
        try:
            return self.tasks.task_features(task)
        except TypeError as error:
            raise InputError(f"task = {type(self.tasks).__name__}: {error}") from error

    def make_vector_env(self, num_envs: int, *, num_threads: int) -> TaskVectorEnv:
        env = vector_env_of(self.tasks, num_envs, num_threads=num_threads, timeout=self._timeout)
        return _TellingEnv(env, self.task_features, self._num_features)

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
    together = tasks.make_vector_env(num_envs, num_threads=num_threads)
    return GymnasiumTasks(tasks, num_envs, timeout=timeout) if together is None else together


def spaces_of(env: TaskVectorEnv) -> Spaces:
    """What a learner must know of the spaces of `env`.

    Raises:
        InputError: observations are not flat vectors, or actions neither those nor numbers from 0 on.
    """
    observations, actions = env.single_observation_space, env.single_action_space
    if not isinstance(observations, gymnasium.spaces.Box) or len(observations.shape) != 1:
        raise InputError(
            f"observation_space = {observations}: must be a flat Box; wrap the environment in "
            "gymnasium.wrappers.FlattenObservation"
        )
    if isinstance(actions, gymnasium.spaces.Discrete):
        if actions.start != 0:
            raise InputError(f"action_space = {actions}: a Discrete space must start at 0")
        return Spaces(observations.shape[0], int(actions.n), discrete=True)
    if isinstance(actions, gymnasium.spaces.Box) and len(actions.shape) == 1:
        return Spaces(observations.shape[0], actions.shape[0], discrete=False)
    raise InputError(f"action_space = {actions}: must be a flat Box or Discrete")


class _TaskEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives the environment its task before every reset, and says with what task, seed and step it failed."""

    def __init__(self, tasks: EnvTaskDistribution[Any], limit: TimeLimit) -> None:
        self._tasks = tasks
        self._limit = limit
        self._seed: int | None = None
        self._steps = 0
        self._last_observation: Any = None
        self._warnings: list[str] = []
        self.task: Any = None
        self.ended = False
        super().__init__(self._call("make_env", tasks.make_env))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self.ended:  # autoreset: what an environment does after its end is ignored, so it does nothing
            return self._last_observation, {}
        self._seed, self._steps = seed, 0
        if self.task is not None:
            self._call("set_task", self._tasks.set_task, self.env, self.task)
        observation, infos = self._call("reset", self._reset, seed, options)
        return self._observed(observation, "reset"), infos

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.ended:
            return self._last_observation, 0.0, False, False, {}
        self._steps += 1
        observation, reward, terminated, truncated, infos = self._call("step", self._step, action)
        broken = diverged(self._warnings)
        if broken:
            infos = {**infos, "diverged": True}
        if not (isinstance(reward, (Real, np.bool_)) or getattr(reward, "shape", None) == ()):
            self._fail(f"step returned the reward {reward!r}: must be one number")
        self.ended = bool(terminated or truncated or broken)
        return self._observed(observation, "step"), reward, terminated, truncated, infos

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        observation, infos = self.env.reset(seed=seed, options=options)
        return observation, infos

    def _step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = self.env.step(action)
        return observation, reward, terminated, truncated, infos

    def _observed(self, observation: Any, where: str) -> Any:
        shape = getattr(observation, "shape", None)
        if shape is None:
            shape = self._call(where, np.shape, observation)
        if shape != self.observation_space.shape:
            self._fail(
                f"{where} returned an observation of shape {tuple(shape)}: must be {self.observation_space.shape}, "
                "the observation space's"
            )
        self._last_observation = observation
        return observation

    def _call(self, what: str, function: Callable[..., Result], *arguments: Any) -> Result:
        self._limit.restart()
        try:
            with caught() as self._warnings:
                return function(*arguments)
        except (InputError, RunError):
            raise
        except (Exception, SystemExit) as error:
            self._fail(f"{what} raised {type(error).__name__}: {error}", error)

    def _fail(self, what: str, error: BaseException | None = None) -> NoReturn:
        raise environment_fault(what, task=self.task, seed=self._seed, step=self._steps) from error


class TimeLimit:
    """Raises `TimeoutError` in what runs longer than `seconds` after `restart`, while `watching`."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._watching = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Takes SIGALRM and its timer, where they are to be had; gives both back as they were."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self._seconds is None or not hasattr(signal, "setitimer") or not in_main_thread:
            yield
            return
        delay, interval = signal.setitimer(signal.ITIMER_REAL, 0.0)
        started = time.monotonic()
        handler = signal.signal(signal.SIGALRM, self._ring)
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
            if delay:
                signal.setitimer(signal.ITIMER_REAL, max(delay - (time.monotonic() - started), 1e-3), interval)

    def restart(self) -> None:
        """The time of the next call begins."""
        if self._watching and self._seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def _ring(self, number: int, frame: object) -> None:
        raise TimeoutError(f"no answer within {self._seconds:g} s")
