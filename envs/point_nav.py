"""A point in the plane that must find a goal it cannot see.

Source: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
arXiv:1703.03400.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.envs.vector import Bools, Floats, Ids, TaskBatchEnv
from metarl.errors import require, unknown_name
from metarl.tasks import EnvTaskDistribution, Split

MAX_STEP = 0.1
GOAL_RADIUS = 0.01
GOAL_RANGE = 0.5


@dataclass(frozen=True)
class Goal:
    """Where to go, in the plane's units; training goals lie in [-0.5, 0.5]^2.

    Attributes:
        x: first coordinate.
        y: second coordinate.
    """

    x: float
    y: float


class PointNavEnv(TaskBatchEnv):
    """Observes its position, starts in (0, 0), and moves by 0.1 * clip(action, -1, 1).

    The reward is minus the Euclidean distance to the goal after the move; within 0.01 of it in both coordinates the MDP
    ends.
    """

    default_task = Goal(GOAL_RANGE, GOAL_RANGE)

    def __init__(
        self, num_envs: int, *, horizon: int = 100, autoreset_mode: AutoresetMode = AutoresetMode.DISABLED
    ) -> None:
        """
        Args:
            num_envs: number of points.
            horizon: steps after which a trajectory is truncated.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        super().__init__(
            num_envs,
            Box(-np.inf, np.inf, (2,), np.float32),
            Box(-1.0, 1.0, (2,), np.float32),
            horizon=horizon,
            autoreset_mode=autoreset_mode,
        )
        self._positions = np.zeros((num_envs, 2))
        self._goals = np.zeros((num_envs, 2))

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Goal]) -> None:
        self._goals[ids] = [(task.x, task.y) for task in tasks]

    def _reset(self, ids: NDArray[np.intp], rngs: Sequence[np.random.Generator]) -> None:
        self._positions[ids] = 0.0

    def _advance(self, actions: NDArray[Any], ids: Ids) -> tuple[Floats, Bools | bool, Bools | bool]:
        self._positions[ids] += MAX_STEP * np.clip(actions.astype(np.float64), -1.0, 1.0)
        offsets = self._positions[ids] - self._goals[ids]
        arrived: Bools = np.all(np.abs(offsets) < GOAL_RADIUS, axis=1)
        return -np.linalg.norm(offsets, axis=1), arrived, False

    def _observe(self) -> NDArray[Any]:
        return self._positions.astype(np.float32)


@dataclass(frozen=True)
class PointNav(EnvTaskDistribution[Goal]):
    """Goals drawn uniformly from [-0.5, 0.5]^2.

    Source: Finn et al. 2017, arXiv:1703.03400.

    Attributes:
        horizon: steps per trajectory, >= 1.
        test_goals: "paper": the 40 goals behind the paper's figure, a finite test split; "sampled": fresh draws.
    """

    horizon: int = 100
    test_goals: Literal["paper", "sampled"] = "paper"

    def __post_init__(self) -> None:
        require(self.horizon >= 1, "task.horizon", self.horizon, "at least 1")
        if self.test_goals not in ("paper", "sampled"):
            raise unknown_name("task.test_goals", self.test_goals, ("paper", "sampled"))

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Goal]:
        if split == "test" and self.test_goals == "paper":
            goals = _paper_goals()
            return [goals[i] for i in rng.choice(len(goals), num_tasks, replace=num_tasks > len(goals))]
        return _goals(rng.uniform(-GOAL_RANGE, GOAL_RANGE, (num_tasks, 2)))

    def all_tasks(self, split: Split = "test") -> list[Goal] | None:
        return _paper_goals() if split == "test" and self.test_goals == "paper" else None

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> PointNavEnv:
        return PointNavEnv(num_envs, horizon=self.horizon)


def _paper_goals() -> list[Goal]:
    # The legacy generator is what the authors' test script used.
    return _goals(np.random.RandomState(1).uniform(-GOAL_RANGE, GOAL_RANGE, (40, 2)))


def _goals(positions: Floats) -> list[Goal]:
    return [Goal(float(x), float(y)) for x, y in positions]
