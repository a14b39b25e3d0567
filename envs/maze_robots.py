"""What the families of robots in mazes share: tasks, the route to the goal that rewards measure, and walls.

No paper sets a standard for mazes as meta-RL tasks. These definitions are our own, similar to PointMaze and AntMaze of
Gymnasium-Robotics. Differs from them: the dense reward is minus the length of the route to the goal, not
exp(-straight distance). The goal is not observed, and neither start nor goal changes within a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast
from metarl.core.tasks import Split
from metarl.envs.batch import BatchEnv
from metarl.envs.mazes import MEDIUM_MAZE, U_MAZE, Layout, MazeTask, cells, centres, distances, places
from metarl.envs.random_numbers import RandomNumbers
from metarl.envs.vector import Bools, Floats, Ids
from metarl.rl.tasks import EnvTaskDistribution, Scene

FixedLayout = Literal["u", "medium"]
Reward = Literal["dense", "sparse"]
Value = TypeVar("Value")

FIXED_LAYOUTS = {"u": U_MAZE, "medium": MEDIUM_MAZE}
TEST_SHARE = 3  # every third goal of a fixed layout is for test


class MazeEnv(BatchEnv):
    """A robot in a maze. Its first two positions are x and y in the maze's coordinates.

    It starts at the centre of the start cell, plus noise of size `reset_noise`. The MDP never terminates, so a robot at
    the goal is rewarded for staying. The dense reward is minus the length of the route to the goal after the step, in
    metres (`route_nodes`). The sparse reward is 1 within `goal_radius` of the goal's centre, else 0. `success` in the
    infos of `step` is true where the sparse reward is 1, with both rewards.

    Attributes:
        cell_size: side of a cell, in metres.
        goal_radius: in metres.
    """

    cell_size: float
    goal_radius: float
    default_camera = "above"

    def __init__(
        self, model: Any, num_envs: int, *, shape: tuple[int, int], reward: Reward = "dense", **settings: Any
    ) -> None:
        """
        Args:
            model: an `MjModel` with one site, which is moved to the goal.
            num_envs: number of simulations.
            shape: rows and columns of every task's layout.
            reward: "dense" or "sparse".
            **settings: of `BatchEnv`.
        """
        super().__init__(model, num_envs, **settings)
        self._shape = shape
        self._reward = reward
        self._nodes = np.zeros((num_envs, *shape, 3, 3))
        self._starts, self._goals = np.zeros((2, num_envs, 2))

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[MazeTask]) -> None:
        wrong = next((task for task in tasks if task.layout.walls.shape != self._shape), None)
        if wrong is not None:
            raise ValueError(f"{wrong}: the layouts of these environments must have {self._shape} rows and columns")
        distinct, which = numbered(tasks)
        starts, goals = (np.array([getattr(task, name) for task in distinct]) for name in ("start", "goal"))
        self._nodes[ids] = route_nodes(distances(np.stack([task.layout.walls for task in distinct]), goals))[which]
        self._starts[ids], self._goals[ids] = self._centres(starts)[which], self._centres(goals)[which]
        sites = np.concatenate((self._goals[ids], np.zeros((len(ids), 1))), 1)
        self.simulator.set_model_field("site_pos", ids, sites[:, np.newaxis])

    def _reset(self, ids: NDArray[np.intp], rngs: RandomNumbers) -> None:
        self._close_renderers()
        qpos, qvel = self._initial_states(rngs)
        qpos[:, :2] += self._starts[ids]
        self.simulator.reset(ids, qpos, qvel)

    def _rewards(self, ids: Ids, velocities: Floats, controls: Floats) -> Floats:
        if self._reward == "sparse":
            return self._arrived(ids).astype(np.float64)
        found = self._places(ids)
        row_column = np.minimum(np.maximum(np.floor(found), 0.0), np.array(self._shape) - 1.0)
        lengths = route_lengths(self._nodes[ids], row_column.astype(np.intp), found - row_column - 0.5)
        return -self.cell_size * lengths

    def _infos(self, ids: Ids) -> dict[str, NDArray[Any]]:
        return {"success": self._arrived(ids)}

    def _arrived(self, ids: Ids) -> Bools:
        right, up = (self._positions(ids) - self._goals[ids]).T
        near: Bools = right * right + up * up < self.goal_radius**2
        return near

    def _positions(self, ids: Ids) -> Floats:
        positions = self.simulator.qpos[ids, :2]
        return np.where(np.isfinite(positions), positions, 0.0)  # a diverged simulation has reward 0 at any place

    def _places(self, ids: Ids) -> Floats:
        """The robots' places in the grid, [len(ids), 2]; cell (r, c) extends from (r, c) to (r + 1, c + 1)."""
        return places(self._positions(ids), self._shape, self.cell_size)

    def _cells(self, positions: Floats) -> NDArray[np.intp]:
        return np.clip(cells(positions, self._shape, self.cell_size), 0, np.array(self._shape) - 1)

    def _centres(self, row_column: Sequence[tuple[int, int]] | NDArray[np.intp]) -> Floats:
        return centres(np.asarray(row_column), self._shape, self.cell_size)


class MazeTasks(EnvTaskDistribution[MazeTask]):
    """What maze families share: disjoint splits, and a picture of the task from above."""

    splits = "disjoint"
    env: ClassVar[type[MazeEnv]]

    def task_features(self, task: MazeTask) -> NDArray[np.float32]:
        return task.features()

    def scene(self, task: MazeTask) -> Scene:
        shape, size = task.layout.walls.shape, self.env.cell_size
        boxes = wall_boxes(task.layout, size, 1.0)[..., :2]
        (start_x, start_y), (goal_x, goal_y) = centres(np.array([task.start, task.goal]), shape, size).tolist()
        return Scene(
            walls=tuple((x - a, y - b, 2.0 * a, 2.0 * b) for (x, y), (a, b) in boxes.tolist()),
            start=(start_x, start_y),
            goal=(goal_x, goal_y),
            goal_radius=self.env.goal_radius,
        )

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return observations[..., :2]


@dataclass(frozen=True)
class FixedMazeTasks(MazeTasks):
    """One layout. The start is the first free cell, and the goal is one of the others.

    Counted row by row, every third goal is for test only.
    """

    horizon: Annotated[int, AtLeast(1)]
    layout: FixedLayout
    reward: Reward

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[MazeTask]:
        tasks = self.all_tasks(split)
        return [tasks[i] for i in rng.integers(len(tasks), size=num_tasks)]

    def all_tasks(self, split: Split = "test") -> list[MazeTask]:
        layout = FIXED_LAYOUTS[self.layout]
        start, *goals = ((int(row), int(column)) for row, column in layout.free_cells)
        test = [number % TEST_SHARE == TEST_SHARE - 1 for number in range(len(goals))]
        return [
            MazeTask(layout, start, goal)
            for goal, for_test in zip(goals, test, strict=True)
            if for_test == (split == "test")
        ]


def numbered(values: Sequence[Value]) -> tuple[list[Value], NDArray[np.intp]]:
    """The distinct values, and the index of each of `values` among them, [len(values)]."""
    numbers: dict[Value, int] = {}
    runs = [(numbers.setdefault(value, len(numbers)), len([*same])) for value, same in groupby(values)]
    return list(numbers), np.repeat(*np.array(runs).T)


def wall_boxes(layout: Layout, size: float, height: float) -> Floats:
    """Boxes on the floor that cover the walls, one for each run of adjacent wall cells in a row.

    Args:
        layout: the maze.
        size: side of a cell, in metres.
        height: height of the walls, in metres.

    Returns:
        Centres and half sizes, [num_boxes, 2, 3].
    """
    changes = np.diff(layout.walls.astype(np.int8), axis=1, prepend=0, append=0)
    rows, firsts = np.nonzero(changes == 1)
    ends = np.nonzero(changes == -1)[1]
    shape = layout.walls.shape
    corners = [centres(np.stack((rows, columns), 1), shape, size) for columns in (firsts, ends - 1)]
    boxes = np.full((len(rows), 2, 3), height / 2.0)
    boxes[:, 0, :2] = (corners[0] + corners[1]) / 2.0
    boxes[:, 1, 0], boxes[:, 1, 1] = size * (ends - firsts) / 2.0, size / 2.0
    return boxes


def route_nodes(steps: Floats) -> Floats:
    """The length of the route to the goal at nine nodes of each cell: its centre, edges and corners.

    A centre has the steps of its cell. An edge or a corner has the mean of the free cells that meet there, so lengths
    are continuous from cell to cell. The diagonal cell at a corner counts only if one of the two cells beside it is
    free. In a corridor, this is the length along the corridor. A robot may end up on a wall: there, the length is one
    step more than at the farthest cell.

    Args:
        steps: steps from each cell to the goal's cell, inf in walls, [n, num_rows, num_columns].

    Returns:
        Lengths in cells, [n, num_rows, num_columns, 3, 3]. The last axes go from top to bottom and from left to right.
    """
    _, num_rows, num_columns = steps.shape
    padded = np.pad(steps, ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
    nodes = np.empty((*steps.shape, 3, 3))
    for i in range(3):
        for j in range(3):
            beside, across, diagonal = (
                padded[:, row : row + num_rows, column : column + num_columns]
                for row, column in ((i, 1), (1, j), (i, j))
            )
            diagonal = np.where(np.isfinite(beside) | np.isfinite(across), diagonal, np.inf)
            meeting = np.stack((steps, beside, across, diagonal))
            free = np.isfinite(meeting)
            nodes[..., i, j] = np.where(free, meeting, 0.0).sum(0) / np.maximum(free.sum(0), 1)
    free = np.isfinite(steps)
    farthest = np.where(free, steps, 0.0).max((1, 2))
    return np.where(free[..., np.newaxis, np.newaxis], nodes, 1.0 + farthest[:, None, None, None, None])


def route_lengths(nodes: Floats, row_column: NDArray[np.intp], offsets: Floats) -> Floats:
    """The lengths of routes to the goal, interpolated bilinearly between the nodes of `route_nodes`.

    Args:
        nodes: [n, num_rows, num_columns, 3, 3].
        row_column: the robots' cells, [n, 2].
        offsets: from the cells' centres, down and to the right, in cells, [n, 2].

    Returns:
        Lengths in cells, [n].
    """
    num_nodes = np.prod(nodes.shape[1:])
    of_cell = (row_column[:, 0] * nodes.shape[2] + row_column[:, 1]) * 9
    centre = np.arange(0, len(nodes) * num_nodes, num_nodes) + of_cell + 4
    down, right = np.minimum(2.0 * np.abs(offsets), 1.0).T
    below, beside = np.where(offsets < 0.0, -1, 1).T * [[3], [1]]  # from one node's number to the next
    of = nodes.ravel().take  # one index instead of five is several times as fast
    near = (1.0 - right) * of(centre) + right * of(centre + beside)
    far = (1.0 - right) * of(centre + below) + right * of(centre + below + beside)
    lengths: Floats = (1.0 - down) * near + down * far
    return lengths
