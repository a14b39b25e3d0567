"""A small grid: the agent must find a hidden goal and then stay there.

Source: Zintgraf et al., "VariBAD: A Very Good Method for Bayes-Adaptive Deep RL via Meta-Learning", 2019,
arXiv:1910.08348.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast
from metarl.core.tasks import Split
from metarl.envs.vector import Bools, Floats, Ids, TaskBatchEnv
from metarl.rl.tasks import EnvTaskDistribution, Scene

MOVES = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
"""The change of (x, y) by each action: stay, up, right, down, left."""
GOAL_REWARD = 1.0
STEP_REWARD = -0.1


@dataclass(frozen=True)
class GoalCell:
    """The cell to find.

    Attributes:
        x: column, from 0.
        y: row, from 0.
    """

    x: int
    y: int


class GridNavEnv(TaskBatchEnv):
    """Starts in cell (0, 0) and never terminates. The observation is the cell as a one-hot vector (entry size * y + x).

    An action stays or moves to a neighbouring cell. A move off the grid has no effect. The reward is 1 if the cell
    after the action is the goal, else -0.1.
    """

    def __init__(
        self, num_envs: int, *, size: int, horizon: int, autoreset_mode: AutoresetMode = AutoresetMode.DISABLED
    ) -> None:
        """
        Args:
            num_envs: number of grids.
            size: cells along each side.
            horizon: steps after which a trajectory is truncated.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        self.default_task = GoalCell(size - 1, size - 1)
        super().__init__(
            num_envs,
            Box(0.0, 1.0, (size**2,), np.float32),
            Discrete(len(MOVES)),
            horizon=horizon,
            autoreset_mode=autoreset_mode,
        )
        self._size = size
        self._moves = np.array(MOVES)
        self._positions = np.zeros((num_envs, 2), np.int64)
        self._goals = np.zeros((num_envs, 2), np.int64)

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[GoalCell]) -> None:
        self._goals[ids] = [(task.x, task.y) for task in tasks]

    def _reset(self, ids: NDArray[np.intp], rngs: Sequence[np.random.Generator]) -> None:
        self._positions[ids] = 0

    def _advance(self, actions: NDArray[Any], ids: Ids) -> tuple[Floats, Bools | bool, Bools | bool]:
        self._positions[ids] = np.clip(self._positions[ids] + self._moves[actions], 0, self._size - 1)
        found = (self._positions[ids] == self._goals[ids]).all(1)
        return np.where(found, GOAL_REWARD, STEP_REWARD), False, False

    def _observe(self) -> NDArray[Any]:
        observations = np.zeros((self.num_envs, self._size**2), np.float32)
        x, y = self._positions.T
        observations[np.arange(self.num_envs), self._size * y + x] = 1.0
        return observations


@dataclass(frozen=True)
class GridNav(EnvTaskDistribution[GoalCell]):
    """Goals drawn uniformly from the cells that are neither the start nor one of its three neighbours.

    Source: Zintgraf et al. 2019, arXiv:1910.08348: 21 goals on a grid of 5 by 5, four episodes of 15 steps.
    Differs from the source's code: the cell is observed as a one-hot vector, not as two coordinates.

    Attributes:
        size: cells along each side.
        horizon: steps per trajectory.
    """

    splits = "identical"
    size: Annotated[int, AtLeast(3)] = 5
    horizon: Annotated[int, AtLeast(1)] = 15

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[GoalCell]:
        goals = self.all_tasks(split)
        return [goals[i] for i in rng.integers(len(goals), size=num_tasks)]

    def all_tasks(self, split: Split = "test") -> list[GoalCell]:
        cells = [GoalCell(x, y) for y in range(self.size) for x in range(self.size)]
        return [cell for cell in cells if max(cell.x, cell.y) >= 2]

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> GridNavEnv:
        return GridNavEnv(num_envs, size=self.size, horizon=self.horizon)

    def task_features(self, task: GoalCell) -> NDArray[np.float32]:
        """The goal's cell as a one-hot vector, as in the observation."""
        features = np.zeros(self.size**2, np.float32)
        features[self.size * task.y + task.x] = 1.0
        return features

    def scene(self, task: GoalCell) -> Scene:
        """Cells are unit squares. (0, 0) is the corner of the first one."""
        size, edge = float(self.size), 0.1
        beside = tuple((x, -edge, edge, size + 2 * edge) for x in (-edge, size))
        walls = (*beside, (0.0, -edge, size, edge), (0.0, size, size, edge))
        return Scene(walls=walls, start=(0.5, 0.5), goal=(task.x + 0.5, task.y + 0.5), goal_radius=0.5)

    def positions(self, observations: NDArray[np.float32]) -> Floats:
        y, x = np.divmod(observations.argmax(-1), self.size)
        return np.stack([x, y], -1) + 0.5
