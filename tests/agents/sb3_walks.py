"""A family of tasks for the tests of what stable-baselines3 trains and of predictors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from metarl.core.tasks import Split
from metarl.envs.vector import TaskBatchEnv
from metarl.rl.tasks import EnvTaskDistribution


@pytest.fixture(autouse=True)
def _sb3_seeds_globals(_globals_untouched: None) -> Iterator[None]:
    """SB3 seeds and draws from the global generators, which no test may leave changed."""
    numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    yield
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)
    torch.set_rng_state(torch_state)


@dataclass(frozen=True)
class Walk:
    """Ends after `length` steps; a step pays `pay` times the action."""

    length: int
    pay: float


class WalkEnv(gymnasium.Env[Any, Any]):
    """Observes the steps so far and what was paid so far."""

    observation_space = Box(-100.0, 100.0, (2,), np.float64)

    def __init__(self, discrete: bool) -> None:
        self.action_space = Discrete(2) if discrete else Box(-1.0, 1.0, (1,), np.float32)
        self.task = Walk(1, 0.0)
        self.broken = False
        self.state = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.zeros(2)
        return self.state.copy(), {"seed": seed}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        reward = self.task.pay * float(np.asarray(action).reshape(-1)[0])
        self.state = self.state + np.array([1.0, reward])
        observation = np.full(2, np.nan) if self.broken else self.state.copy()
        infos = {"success": self.state[0] == 2} if self.state[0] <= 2 else {}
        return observation, reward, self.state[0] >= self.task.length, False, infos


class WalkBatch(TaskBatchEnv):
    """The same, all at once; a task that pays nan breaks down in its third step."""

    def _assign_tasks(self, ids: Any, tasks: Sequence[Walk]) -> None:
        self.length, self.pay = (getattr(self, name, np.zeros(self.num_envs)) for name in ("length", "pay"))
        self.length[ids], self.pay[ids] = [task.length for task in tasks], [task.pay for task in tasks]

    def _reset(self, ids: Any, rngs: Any) -> None:
        self.paid = getattr(self, "paid", np.zeros(self.num_envs))
        self.paid[ids] = 0.0

    def _advance(self, actions: Any, ids: Any) -> tuple[Any, Any, Any]:
        actions = np.clip(actions, -1.0, 1.0)
        pay = np.nan_to_num(self.pay[ids], nan=1.0)
        rewards = pay * np.reshape(actions, (len(actions), -1))[:, 0]
        self.paid[ids] += rewards
        step = self._elapsed[ids] + 1
        return rewards, step >= self.length[ids], np.isnan(self.pay[ids]) & (step == 3)

    def _infos(self, ids: Any) -> dict[str, Any]:
        return {"success": self._elapsed[ids] == 2}

    def _observe(self) -> Any:
        return np.stack([self._elapsed.astype(float), self.paid], axis=1)


@dataclass(frozen=True)
class Walks(EnvTaskDistribution[Walk]):
    """Lengths from 1 to 9; test walks pay less than nothing."""

    horizon: int = 5
    discrete: bool = False
    together: bool = True
    mode: AutoresetMode = AutoresetMode.DISABLED

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Walk]:
        sign = 1.0 if split == "train" else -1.0
        return [Walk(int(rng.integers(1, 10)), sign * float(rng.random())) for _ in range(num_tasks)]

    def make_env(self) -> WalkEnv:
        return WalkEnv(self.discrete)

    def set_task(self, env: Any, task: Walk) -> None:
        env.task = task

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> WalkBatch | None:
        if not self.together:
            return None
        spaces = WalkEnv(self.discrete)
        return WalkBatch(
            num_envs, spaces.observation_space, spaces.action_space, horizon=self.horizon, autoreset_mode=self.mode
        )


BOTH = pytest.mark.parametrize("together", [True, False], ids=["together", "gymnasium's own"])


def walk(env: Any, num_steps: int, *, seed: int = 0) -> list[Any]:
    """Observations, rewards, dones, infos and tasks of a random walk, reset first."""
    rng = np.random.default_rng(seed)
    trace: list[Any] = [(env.reset(), env.get_attr("task"))]
    for _ in range(num_steps):
        if isinstance(env.action_space, Discrete):
            actions = rng.integers(env.action_space.n, size=env.num_envs)
        else:
            actions = rng.uniform(-1.0, 1.0, (env.num_envs, *env.action_space.shape)).astype(np.float32)
        trace.append((*env.step(actions), env.get_attr("task")))
    return trace


def same(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)
