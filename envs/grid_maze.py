"""New mazes on a grid: the agent must find a hidden goal, and then find it again.

No paper sets a standard. This definition is our own, similar to the mazes of Duan et al., "RL^2: Fast Reinforcement
Learning via Slow Reinforcement Learning", 2016, arXiv:1611.02779.
Differs from the paper: the agent sees cells of a grid from above, not pictures of rooms in three dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast, Odd
from metarl.core.tasks import Split
from metarl.envs.mazes import STEPS, MazeTask, centres, distances, generate
from metarl.envs.vector import Bools, Floats, Ids, TaskBatchEnv
from metarl.rl.tasks import EnvTaskDistribution, Scene

Reward = Literal["dense", "sparse"]

GOAL_REWARD = 1.0
STEP_REWARD = -0.01


class GridMazeEnv(TaskBatchEnv):
    """Starts in the task's start cell and terminates at its goal. Tasks must be set.

    Actions move up, right, down or left. A move into a wall has no effect. The step onto the goal has reward 1, every
    other step -0.01. The dense reward adds to each other step the number of steps by which the shortest route to the
    goal became shorter: -1, 0 or 1. `success` in the infos of `step` is true at the goal.

    An observation begins with the agent's cell as a one-hot vector (entry num_columns * row + column). Two squares of
    2 * view + 1 cells a side around the agent follow, row by row: the walls, then the goal. Cells outside the square
    are not observed. Walls do not block the view.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        shape: tuple[int, int],
        view: int = 1,
        reward: Reward = "sparse",
        horizon: int = 50,
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
    ) -> None:
        """
        Args:
            num_envs: number of mazes.
            shape: rows and columns of every task's layout.
            view: how many cells the agent sees in each direction.
            reward: "dense" or "sparse".
            horizon: steps after which a trajectory is truncated.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        super().__init__(
            num_envs,
            Box(0.0, 1.0, (shape[0] * shape[1] + 2 * (2 * view + 1) ** 2,), np.float32),
            Discrete(len(STEPS)),
            horizon=horizon,
            autoreset_mode=autoreset_mode,
        )
        self._shape = shape
        self._dense = reward == "dense"
        self._steps = np.array(STEPS)
        self._around = np.arange(2 * view + 1)
        self._walls = np.ones(
            (num_envs, shape[0] + 2 * view, shape[1] + 2 * view), bool
        )  # with a margin of `view` cells
        self._to_go = np.zeros((num_envs, *shape))
        self._starts, self._goals, self._cells = np.zeros((3, num_envs, 2), np.intp)

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[MazeTask]) -> None:
        numbers = {task: number for number, task in enumerate(dict.fromkeys(tasks))}
        wrong = next((task for task in numbers if task.layout.walls.shape != self._shape), None)
        if wrong is not None:
            raise ValueError(f"{wrong}: the layouts of these environments must have {self._shape} rows and columns")
        walls = np.stack([task.layout.walls for task in numbers])
        starts, goals = (np.array([getattr(task, name) for task in numbers]) for name in ("start", "goal"))
        which = [numbers[task] for task in tasks]
        view = len(self._around) // 2
        self._walls[ids, view : view + self._shape[0], view : view + self._shape[1]] = walls[which]
        self._to_go[ids] = distances(walls, goals)[which]
        self._starts[ids], self._goals[ids] = starts[which], goals[which]

    def _reset(self, ids: NDArray[np.intp], rngs: Sequence[np.random.Generator]) -> None:
        self._cells[ids] = self._starts[ids]

    def _advance(self, actions: NDArray[Any], ids: Ids) -> tuple[Floats, Bools | bool, Bools | bool]:
        here = self._cells[ids]
        there = here + self._steps[actions]
        to_go = self._to_go[ids]
        every = np.arange(len(to_go))
        before, after = (to_go[every, row, column] for row, column in (here.T, there.T))
        blocked = np.isinf(after)
        self._cells[ids] = np.where(blocked[:, np.newaxis], here, there)
        nearer = np.where(blocked, 0.0, before - after) if self._dense else 0.0
        found = after == 0.0
        return np.where(found, GOAL_REWARD, STEP_REWARD + nearer), found, False

    def _infos(self, ids: Ids) -> dict[str, NDArray[Any]]:
        return {"success": (self._cells[ids] == self._goals[ids]).all(1)}

    def _observe(self) -> NDArray[Any]:
        num_seen = len(self._around) ** 2
        num_cells = self._shape[0] * self._shape[1]
        observations = np.zeros((self.num_envs, num_cells + 2 * num_seen), np.float32)
        every = np.arange(self.num_envs)
        row, column = self._cells.T
        observations[every, self._shape[1] * row + column] = 1.0
        rows, columns = row[:, np.newaxis] + self._around, column[:, np.newaxis] + self._around
        seen = self._walls[every[:, np.newaxis, np.newaxis], rows[:, :, np.newaxis], columns[:, np.newaxis]]
        observations[:, num_cells : num_cells + num_seen] = seen.reshape(self.num_envs, -1)
        place = self._goals - self._cells + len(self._around) // 2
        near = np.flatnonzero(((place >= 0) & (place < len(self._around))).all(1))
        observations[near, num_cells + num_seen + place[near] @ (len(self._around), 1)] = 1.0
        return observations


@dataclass(frozen=True)
class GridMaze(EnvTaskDistribution[MazeTask]):
    """Generated layouts. Start and goal are two free cells, drawn uniformly.

    Layouts of the test split never occur in training (`metarl.envs.mazes.generate`). Start, goal and walls stay the
    same within a task, so a trajectory can use what earlier ones found.

    Attributes:
        horizon: steps per trajectory.
        size: cells along each side, with the border.
        view: how many cells the agent sees in each direction.
        reward: "sparse": 1 at the goal, else -0.01; "dense": the steps by which the route became shorter are
            added to the -0.01.
    """

    splits = "disjoint"
    horizon: Annotated[int, AtLeast(1)] = 50
    size: Annotated[int, AtLeast(5), Odd] = 9
    view: Annotated[int, AtLeast(0)] = 1
    reward: Reward = "sparse"

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[MazeTask]:
        tasks = []
        for _ in range(num_tasks):
            layout = generate(rng, self.size, self.size, split=split)
            start, goal = (tuple(cell) for cell in rng.choice(layout.free_cells, 2, replace=False).tolist())
            tasks.append(MazeTask(layout, start, goal))
        return tasks

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> GridMazeEnv:
        shape = (self.size, self.size)
        return GridMazeEnv(num_envs, shape=shape, view=self.view, reward=self.reward, horizon=self.horizon)

    def task_features(self, task: MazeTask) -> NDArray[np.float32]:
        return task.features()

    def scene(self, task: MazeTask) -> Scene:
        """Cells are unit squares. The middle of the maze is (0, 0)."""
        shape, half = (self.size, self.size), self.size / 2.0
        walls = tuple(
            (run.start() - half, half - row - 1.0, float(len(run[0])), 1.0)
            for row, cells in enumerate(task.layout.rows)
            for run in re.finditer("#+", cells)
        )
        (start_x, start_y), (goal_x, goal_y) = centres(np.array([task.start, task.goal]), shape, 1.0).tolist()
        return Scene(walls=walls, start=(start_x, start_y), goal=(goal_x, goal_y), goal_radius=0.5)

    def positions(self, observations: NDArray[np.float32]) -> Floats:
        cell = observations[..., : self.size**2].argmax(-1)
        return centres(np.stack(np.divmod(cell, self.size), -1), (self.size, self.size), 1.0)
