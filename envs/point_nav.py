"""A point in the plane that must find a goal it does not observe, from dense or sparse rewards.

Sources: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
arXiv:1703.03400; with sparse rewards: Rakelly et al., "Efficient Off-Policy Meta-Reinforcement Learning via
Probabilistic Context Variables", 2019, arXiv:1903.08254, and Zintgraf et al., "VariBAD: A Very Good Method for
Bayes-Adaptive Deep RL via Meta-Learning", 2019, arXiv:1910.08348.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast
from metarl.core.tasks import Split
from metarl.envs.vector import Bools, Floats, Ids, TaskBatchEnv
from metarl.rl.tasks import EnvTaskDistribution, Scene

MAX_STEP = 0.1
GOAL_RADIUS = 0.01
GOAL_RANGE = 0.5
SPARSE_GOAL_RADIUS = 0.2
CIRCLE_RADIUS = 1.0


@dataclass(frozen=True)
class Goal:
    """The place to find, in the plane's units.

    Attributes:
        x: first coordinate.
        y: second coordinate.
    """

    x: float
    y: float


class PointNavEnv(TaskBatchEnv):
    """Starts in (0, 0), observes its position, and moves by 0.1 * clip(action, -1, 1).

    The reward is minus the Euclidean distance to the goal after the move. The MDP ends when the point is within 0.01 of
    the goal in both coordinates.
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


class PointNavSparseEnv(PointNavEnv):
    """Observes and moves as `PointNavEnv` does, but never terminates: each step at the goal has a reward.

    Let d be the Euclidean distance to the goal after the move. The sparse reward is 1 - d if d <= 0.2, else 0. The
    dense reward is -d. `success` in the infos of `step` is true if d <= 0.2.
    """

    default_task = Goal(CIRCLE_RADIUS, 0.0)

    def __init__(
        self,
        num_envs: int,
        *,
        reward: Literal["dense", "sparse"] = "sparse",
        horizon: int = 100,
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
    ) -> None:
        """
        Args:
            num_envs: number of points.
            reward: "dense" or "sparse".
            horizon: steps after which a trajectory is truncated.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        super().__init__(num_envs, horizon=horizon, autoreset_mode=autoreset_mode)
        self._dense = reward == "dense"

    def _advance(self, actions: NDArray[Any], ids: Ids) -> tuple[Floats, Bools | bool, Bools | bool]:
        dense, _, diverged = super()._advance(actions, ids)
        return dense if self._dense else np.where(self._arrived(ids), 1.0 + dense, 0.0), False, diverged

    def _infos(self, ids: Ids) -> dict[str, NDArray[Any]]:
        return {"success": self._arrived(ids)}

    def _arrived(self, ids: Ids) -> Bools:
        near: Bools = np.linalg.norm(self._positions[ids] - self._goals[ids], axis=1) <= SPARSE_GOAL_RADIUS
        return near


@dataclass(frozen=True)
class PointNav(EnvTaskDistribution[Goal]):
    """Goals drawn uniformly from [-0.5, 0.5]^2.

    Source: Finn et al. 2017, arXiv:1703.03400.

    Attributes:
        horizon: steps per trajectory.
        test_goals: "paper": the 40 goals of the paper's figure, a finite test split; "sampled": new draws.
    """

    horizon: Annotated[int, AtLeast(1)] = 100
    test_goals: Literal["paper", "sampled"] = "paper"

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Goal]:
        if split == "test" and self.test_goals == "paper":
            goals = _paper_goals()
            return [goals[i] for i in rng.choice(len(goals), num_tasks, replace=num_tasks > len(goals))]
        return _goals(rng.uniform(-GOAL_RANGE, GOAL_RANGE, (num_tasks, 2)))

    def all_tasks(self, split: Split = "test") -> list[Goal] | None:
        return _paper_goals() if split == "test" and self.test_goals == "paper" else None

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> PointNavEnv:
        return PointNavEnv(num_envs, horizon=self.horizon)

    def scene(self, task: Goal) -> Scene:
        extent = (-GOAL_RANGE, GOAL_RANGE, -GOAL_RANGE, GOAL_RANGE)
        return Scene(start=(0.0, 0.0), goal=(task.x, task.y), goal_radius=GOAL_RADIUS, extent=extent)

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return observations


@dataclass(frozen=True)
class PointNavSparse(EnvTaskDistribution[Goal]):
    """Goals on the upper half of the unit circle, at angles drawn uniformly from [0, pi).

    Source: the code of Zintgraf et al. 2019, arXiv:1910.08348. The code of Rakelly et al. 2019, arXiv:1903.08254,
    differs. It has 20 steps and 100 goals on the half circle, 80 for training and 20 for test. It trains on the dense
    reward and tests on the sparse one. Here `reward` holds for both splits.

    Attributes:
        horizon: steps per trajectory.
        reward: "sparse": 1 - distance within 0.2 of the goal, else 0; "dense": minus the distance.
    """

    horizon: Annotated[int, AtLeast(1)] = 100
    reward: Literal["dense", "sparse"] = "sparse"

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Goal]:
        angles = rng.uniform(0.0, np.pi, num_tasks)
        return _goals(CIRCLE_RADIUS * np.stack((np.cos(angles), np.sin(angles)), 1))

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> PointNavSparseEnv:
        return PointNavSparseEnv(num_envs, reward=self.reward, horizon=self.horizon)

    def scene(self, task: Goal) -> Scene:
        reach = CIRCLE_RADIUS + SPARSE_GOAL_RADIUS
        extent = (-reach, reach, -SPARSE_GOAL_RADIUS, reach)
        return Scene(start=(0.0, 0.0), goal=(task.x, task.y), goal_radius=SPARSE_GOAL_RADIUS, extent=extent)

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return observations


def _paper_goals() -> list[Goal]:
    # The authors' test script used numpy's legacy generator.
    return _goals(np.random.RandomState(1).uniform(-GOAL_RANGE, GOAL_RANGE, (40, 2)))


def _goals(positions: Floats) -> list[Goal]:
    return [Goal(float(x), float(y)) for x, y in positions]
