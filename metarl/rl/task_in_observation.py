"""The environments of an oracle: every observation ends with the features of the task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import DISTRIBUTION, InputError, environment_fault, text_of, users_code
from metarl.core.tasks import Split, Tasks, draw
from metarl.rl.environments import spaces_of, vector_env_of
from metarl.rl.tasks import (
    Array,
    EnvTaskDistribution,
    EnvTasks,
    ResetOptions,
    ResetResult,
    ResetSeed,
    Scene,
    StepResult,
    TaskVectorEnv,
    TaskVectorWrapper,
)

Features = NDArray[np.float32]


class TaskInObservation(EnvTaskDistribution[Any]):
    """A distribution with the tasks of another one, whose environments show the agent the features of their task.

    Args:
        tasks: the distribution; its `task_features` gives the features.
        timeout: as in `GymnasiumTasks`, for environments that are stepped one by one.

    Raises:
        InputError: the tasks have no numbers as features.
    """

    def __init__(self, tasks: EnvTasks, *, timeout: float | None = None) -> None:
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

    def task_features(self, task: object) -> Features:
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
        return _FeaturesEnv(env, self.task_features, self._num_features or 0)

    def scene(self, task: object) -> Scene | None:
        return self.tasks.scene(task)

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        return self.tasks.positions(observations[..., : observations.shape[-1] - self._num_features])


class _FeaturesEnv(TaskVectorWrapper):
    """`env` with the features of its tasks at the end of its observations."""

    def __init__(self, env: TaskVectorEnv, features: Callable[[Any], Features], num_features: int) -> None:
        super().__init__(env)
        space = env.single_observation_space
        size = spaces_of(env).observation_size
        assert isinstance(space, gymnasium.spaces.Box)
        bounds = ((space.low, -np.inf), (space.high, np.inf))
        low, high = (np.pad(ends.astype(np.float32), (0, num_features), constant_values=end) for ends, end in bounds)
        self.single_observation_space = gymnasium.spaces.Box(low, high, (size + num_features,), np.float32)
        self._features_of = features
        self._features = np.zeros((env.num_envs, num_features), np.float32)
        self._next = self._features.copy()  # a new task takes effect at the next reset

    def set_tasks(self, tasks: Tasks) -> None:
        self.env.set_tasks(tasks)
        known = {id(task): self._features_of(task) for task in {id(task): task for task in tasks}.values()}
        for i, task in enumerate(tasks):
            self._next[i] = known[id(task)]

    def reset(self, *, seed: ResetSeed = None, options: ResetOptions = None) -> ResetResult:
        observations, infos = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self._features[mask] = self._next[mask]
        return self._with_features(observations), infos

    def step(self, actions: Any) -> StepResult:
        observations, *rest = self.env.step(actions)
        return self._with_features(observations), *rest

    def _with_features(self, observations: Array) -> Array:
        return np.concatenate([observations, self._features], axis=1)
