"""What the families of robots in mazes share: their tasks, the way to the goal that rewards measure, and the walls.

No paper sets a standard for mazes as meta-RL tasks: these are definitions of our own, in the manner of
Gymnasium-Robotics' PointMaze and AntMaze. Differs from them: the dense reward is minus the length of the way to the
goal, not exp(-straight distance); the goal is not observed, and neither start nor goal changes within a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from metarl.envs.batch import BatchEnv
from metarl.envs.luck import Luck
from metarl.envs.mazes import MEDIUM_MAZE, U_MAZE, Layout, MazeTask, cells, centres, distances, places
from metarl.envs.vector import Bools, Floats, Ids
from metarl.errors import require, unknown_name
from metarl.tasks import EnvTaskDistribution, Scene, Split

FixedLayout = Literal["u", "medium"]
Reward = Literal["dense", "sparse"]
Value = TypeVar("Value")

FIXED_LAYOUTS = {"u": U_MAZE, "medium": MEDIUM_MAZE}
TEST_SHARE = 3  # of a fixed layout's goals every third is for test


class MazeEnv(BatchEnv):
    """A robot in a maze: its first two positions are x and y in the maze's coordinates.

    It starts at the centre of the start cell, give or take `reset_noise`, and never terminates: who has arrived
    collects by staying. The dense reward is minus the length of the way to the goal after the step, in metres
    (`way_nodes`); the sparse one is 1 within `goal_radius` of the goal's centre, else 0, which is also what `success`
    in the infos of `step` tells.

    Attributes:
        cell_size: side of a cell, in metres.
        goal_radius: in metres.
    """

    cell_size: float
    goal_radius: float
    default_camera = "above"

    def __init__(self, model: Any, num_envs: int, *, shape: tuple[int, int], reward: Reward, **settings: Any) -> None:
        """
        Args:
            model: an `MjModel` with a site, which is put where the goal is.
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
        self._nodes[ids] = way_nodes(distances(np.stack([task.layout.walls for task in distinct]), goals))[which]
        self._starts[ids], self._goals[ids] = self._centres(starts)[which], self._centres(goals)[which]
        sites = np.concatenate((self._goals[ids], np.zeros((len(ids), 1))), 1)
        self.simulator.set_model_field("site_pos", ids, sites[:, np.newaxis])

    def _reset(self, ids: NDArray[np.intp], rngs: Luck) -> None:
        self._close_renderers()
        qpos, qvel = self._initial_states(rngs)
        qpos[:, :2] += self._starts[ids]
        self.simulator.reset(ids, qpos, qvel)

    def _rewards(self, ids: Ids, velocities: Floats, controls: Floats) -> Floats:
        if self._reward == "sparse":
            return self._arrived(ids).astype(np.float64)
        found = self._places(ids)
        row_column = np.minimum(np.maximum(np.floor(found), 0.0), np.array(self._shape) - 1.0)
        lengths = way_lengths(self._nodes[ids], row_column.astype(np.intp), found - row_column - 0.5)
        return -self.cell_size * lengths

    def _infos(self, ids: Ids) -> dict[str, NDArray[Any]]:
        return {"success": self._arrived(ids)}

    def _arrived(self, ids: Ids) -> Bools:
        right, up = (self._positions(ids) - self._goals[ids]).T
        near: Bools = right * right + up * up < self.goal_radius**2
        return near

    def _positions(self, ids: Ids) -> Floats:
        positions = self.simulator.qpos[ids, :2]
        return np.where(np.isfinite(positions), positions, 0.0)  # a broken one is somewhere

    def _places(self, ids: Ids) -> Floats:
        """Where the robots are in the grid, [len(ids), 2]: cell (r, c) reaches from (r, c) to (r + 1, c + 1)."""
        return places(self._positions(ids), self._shape, self.cell_size)

    def _cells(self, positions: Floats) -> NDArray[np.intp]:
        return np.clip(cells(positions, self._shape, self.cell_size), 0, np.array(self._shape) - 1)

    def _centres(self, row_column: Sequence[tuple[int, int]] | NDArray[np.intp]) -> Floats:
        return centres(np.asarray(row_column), self._shape, self.cell_size)


class MazeTasks(EnvTaskDistribution[MazeTask]):
    """What maze families share: disjoint splits, and how a task looks from above."""

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
    """One layout, and a goal in any free cell but the first, which is the start.

    Every third goal, row by row, is for test alone.
    """

    horizon: int
    layout: FixedLayout
    reward: Reward

    def __post_init__(self) -> None:
        check_settings(self.horizon, self.reward)
        if self.layout not in FIXED_LAYOUTS:
            raise unknown_name("task.layout", self.layout, FIXED_LAYOUTS)

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[MazeTask]:
        tasks = self.all_tasks(split)
        return [tasks[i] for i in rng.integers(len(tasks), size=num_tasks)]

    def all_tasks(self, split: Split = "test") -> list[MazeTask]:
        layout = FIXED_LAYOUTS[self.layout]
        start, *goals = ((int(row), int(column)) for row, column in layout.free_cells)
        test = [number % TEST_SHARE == TEST_SHARE - 1 for number in range(len(goals))]
        return [
            MazeTask(layout, start, goal) for goal, held in zip(goals, test, strict=True) if held == (split == "test")
        ]


def check_settings(horizon: int, reward: str) -> None:
    """Raises `InputError` unless horizon >= 1 and the reward is known."""
    require(horizon >= 1, "task.horizon", horizon, "at least 1")
    if reward not in ("dense", "sparse"):
        raise unknown_name("task.reward", reward, ("dense", "sparse"))


def numbered(values: Sequence[Value]) -> tuple[list[Value], NDArray[np.intp]]:
    """The different ones of `values`, and which of them each one is, [len(values)]."""
    numbers: dict[Value, int] = {}
    runs = [(numbers.setdefault(value, len(numbers)), len([*same])) for value, same in groupby(values)]
    return list(numbers), np.repeat(*np.array(runs).T)


def wall_boxes(layout: Layout, size: float, height: float) -> Floats:
    """Boxes on the floor that cover the walls, one per run of wall cells in a row.

    Args:
        layout: the maze.
        size: side of a cell, in metres.
        height: of the walls, in metres.

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


def way_nodes(steps: Floats) -> Floats:
    """Lengths of ways to the goal at nine nodes of each cell, from those of cells: continuous from cell to cell.

    Centres have the cell's steps; edges and corners the mean of the free cells that meet there (across a corner, only
    where one of the two between is free). In a corridor this is the way along it. A wall, on which a robot might end
    up, counts one step more than the farthest cell.

    Args:
        steps: from cells to the goal's, inf in walls, [n, num_rows, num_columns].

    Returns:
        Lengths in cells, [n, num_rows, num_columns, 3, 3], the last axes from top to bottom and left to right.
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


def way_lengths(nodes: Floats, row_column: NDArray[np.intp], offsets: Floats) -> Floats:
    """Lengths of ways to the goal, bilinear between the nodes of `way_nodes`.

    Args:
        nodes: [n, num_rows, num_columns, 3, 3].
        row_column: cells, [n, 2].
        offsets: from the cells' centres, down and to the right, in cells, [n, 2].

    Returns:
        In cells, [n].
    """
    num_nodes = np.prod(nodes.shape[1:])
    of_cell = (row_column[:, 0] * nodes.shape[2] + row_column[:, 1]) * 9
    centre = np.arange(0, len(nodes) * num_nodes, num_nodes) + of_cell + 4
    down, right = np.minimum(2.0 * np.abs(offsets), 1.0).T
    below, beside = np.where(offsets < 0.0, -1, 1).T * [[3], [1]]  # from a cell's node to the next one's number
    of = nodes.ravel().take  # one number for an index is several times as fast as five
    near = (1.0 - right) * of(centre) + right * of(centre + beside)
    far = (1.0 - right) * of(centre + below) + right * of(centre + below + beside)
    lengths: Floats = (1.0 - down) * near + down * far
    return lengths
