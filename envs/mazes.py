"""Mazes on a grid: layouts, their generation, and distances in them.

A layout is rows of '#' (wall) and '.' (free) with a border of walls. A cell is (row, column), with row 0 at the top. In
the world's coordinates, the middle of the maze is (0, 0), x grows to the right and y grows upwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from metarl.core.tasks import Split

Scalar = TypeVar("Scalar", bound=np.generic)

STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""What a step adds to (row, column): up, right, down, left."""
TEST_SHARE = 5
"""About one layout in `TEST_SHARE` is for test only. The checksum of a layout decides."""
TEST_REMAINDER = 2  # training then has three of the five 5 by 5 mazes; with 0, the ring would be the only test maze
MAX_DRAWS = 1000


@dataclass(frozen=True)
class Layout:
    """The walls of a maze.

    Attributes:
        rows: strings of '#' and '.' of equal length, from top to bottom; the border is '#'.
    """

    rows: tuple[str, ...]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            wrong = f"row {number} of the layout is {row!r}: "
            if len(row) != len(self.rows[0]):
                raise ValueError(f"{wrong}it must have {len(self.rows[0])} cells, as row 0 has")
            if set(row) - set("#."):
                raise ValueError(f"{wrong}cells are '#' or '.'")
            inside = 0 < number < len(self.rows) - 1
            if row != (f"#{row[1:-1]}#" if inside else "#" * len(row)):
                raise ValueError(f"{wrong}the border must be '#'")
        if not any("." in row for row in self.rows):
            raise ValueError(f"the layout {self.rows} has no free cell")

    def __repr__(self) -> str:
        return f"Layout({len(self.rows)}x{len(self.rows[0])}, checksum {self.checksum:08x})"

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of the rows, the same in every process."""
        return crc32("\n".join(self.rows).encode())

    @cached_property
    def walls(self) -> NDArray[np.bool_]:
        """[num_rows, num_columns], read-only."""
        return _frozen(np.array([list(row) for row in self.rows]) == "#")

    @cached_property
    def free_cells(self) -> NDArray[np.intp]:
        """(row, column) of the cells without walls, row by row, [num_free, 2], read-only."""
        return _frozen(np.argwhere(~self.walls))


U_MAZE = Layout(
    (
        "#####",
        "#...#",
        "###.#",
        "#...#",
        "#####",
    )
)
MEDIUM_MAZE = Layout(
    (
        "########",
        "#..#...#",
        "#..#.#.#",
        "#.##.#.#",
        "#....#.#",
        "#.#.##.#",
        "#.#....#",
        "########",
    )
)


@dataclass(frozen=True)
class MazeTask:
    """A maze with a start and a goal; cells are (row, column).

    Attributes:
        layout: the walls.
        start: the free cell where a trajectory begins.
        goal: the free cell to find.
    """

    layout: Layout
    start: tuple[int, int]
    goal: tuple[int, int]

    def __post_init__(self) -> None:
        for name, (row, column) in (("start", self.start), ("goal", self.goal)):
            if self.layout.walls[row, column]:
                raise ValueError(f"{name} {row, column} of {self.layout} is a wall")

    def features(self) -> NDArray[np.float32]:
        """Walls row by row, 1 where there is one, then start and goal."""
        return np.concatenate([self.layout.walls.ravel(), self.start, self.goal]).astype(np.float32)


def generate(
    rng: np.random.Generator, num_rows: int, num_columns: int, *, split: Split, open_walls: float = 0.15
) -> Layout:
    """A random maze in which all free cells are connected.

    Cells with odd row and column are free. A depth-first walk connects them as a tree. Then some of the walls between
    two of them are opened, which makes loops. Only the checksum decides whether a layout is for training or for test,
    so no layout is in both.

    Args:
        rng: the source of all randomness.
        num_rows: rows with the border, odd, >= 5.
        num_columns: columns with the border, odd, >= 5.
        split: "train" or "test".
        open_walls: probability with which each remaining wall is opened, in [0, 1]; with 0, any two cells are
            connected by one route only.

    Raises:
        ValueError: if a size is even or too small, or if no layout of `split` is found.
    """
    if min(num_rows, num_columns) < 5 or not (num_rows % 2 and num_columns % 2):
        raise ValueError(f"a maze of {num_rows} by {num_columns} cells: both must be odd and at least 5")
    for _ in range(MAX_DRAWS):
        layout = _layout(rng, num_rows, num_columns, open_walls)
        if is_test(layout) == (split == "test"):
            return layout
    raise ValueError(f"no maze of {num_rows} by {num_columns} cells for {split} in {MAX_DRAWS} draws; make it larger")


def is_test(layout: Layout) -> bool:
    """Whether a layout is for test only; about one in five is."""
    return layout.checksum % TEST_SHARE == TEST_REMAINDER


def distances(walls: NDArray[np.bool_], goals: NDArray[np.intp]) -> NDArray[np.float64]:
    """Lengths of the shortest routes to the goals, in steps up, down, left or right.

    Args:
        walls: [n, num_rows, num_columns], with a border of walls.
        goals: (row, column) of one free cell per maze, [n, 2].

    Returns:
        Lengths, [n, num_rows, num_columns]; inf in walls and where the goal cannot be reached.

    Raises:
        ValueError: if a goal is a wall.
    """
    every = np.arange(len(walls))
    blocked = walls[every, goals[:, 0], goals[:, 1]]
    if blocked.any():
        first = int(blocked.argmax())
        raise ValueError(f"goal {tuple(goals[first].tolist())} of maze {first} is a wall")
    lengths = np.full(walls.shape, np.inf)
    unreached = ~walls
    front = np.zeros_like(walls)
    front[every, goals[:, 0], goals[:, 1]] = True
    length = 0
    while front.any():
        lengths[front] = length
        unreached &= ~front
        ahead = np.zeros_like(front)
        ahead[:, 1:] |= front[:, :-1]
        ahead[:, :-1] |= front[:, 1:]
        ahead[:, :, 1:] |= front[:, :, :-1]
        ahead[:, :, :-1] |= front[:, :, 1:]
        front = ahead & unreached
        length += 1
    return lengths


def centres(cells: NDArray[np.intp], shape: tuple[int, int], size: float) -> NDArray[np.float64]:
    """The positions of the cells' middles in the world.

    Args:
        cells: (row, column), [..., 2].
        shape: rows and columns of the maze.
        size: side of a cell, in the world's unit.

    Returns:
        (x, y), [..., 2].
    """
    row, column = np.moveaxis(np.asarray(cells), -1, 0)
    return size * np.stack((column - (shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0 - row), -1)


def cells(positions: NDArray[np.float64], shape: tuple[int, int], size: float) -> NDArray[np.intp]:
    """The cells in which positions lie: the inverse of `centres`. Positions outside the maze get numbers outside it.

    Args:
        positions: (x, y), [..., 2].
        shape: rows and columns of the maze.
        size: side of a cell, in the world's unit.

    Returns:
        (row, column), [..., 2].
    """
    row_column: NDArray[np.intp] = np.floor(places(positions, shape, size)).astype(np.intp)
    return row_column


def places(positions: NDArray[np.float64], shape: tuple[int, int], size: float) -> NDArray[np.float64]:
    """The places of positions in the grid, where cell (r, c) extends from (r, c) to (r + 1, c + 1).

    Args:
        positions: (x, y), [..., 2].
        shape: rows and columns of the maze.
        size: side of a cell, in the world's unit.

    Returns:
        (down, right), [..., 2].
    """
    found = np.empty(np.shape(positions))
    x, y = np.moveaxis(np.asarray(positions), -1, 0)
    found[..., 0], found[..., 1] = shape[0] / 2.0 - y / size, shape[1] / 2.0 + x / size
    return found


def _layout(rng: np.random.Generator, num_rows: int, num_columns: int, open_walls: float) -> Layout:
    rows = [["#"] * num_columns for _ in range(num_rows)]
    rooms = [(row, column) for row in range(1, num_rows, 2) for column in range(1, num_columns, 2)]
    route = [rooms[rng.integers(len(rooms))]]
    unseen = {*rooms} - {*route}
    uniforms = iter(rng.random(len(unseen)).tolist())
    while route:
        row, column = route[-1]
        rows[row][column] = "."
        ahead = [step for step in STEPS if (row + 2 * step[0], column + 2 * step[1]) in unseen]
        if not ahead:
            route.pop()
            continue
        down, right = ahead[int(next(uniforms) * len(ahead))]
        rows[row + down][column + right] = "."
        route.append((row + 2 * down, column + 2 * right))
        unseen.remove(route[-1])
    between = [(row, column) for row in range(1, num_rows - 1) for column in range(1 + row % 2, num_columns - 1, 2)]
    for (row, column), chance in zip(between, rng.random(len(between)).tolist(), strict=True):
        if chance < open_walls:
            rows[row][column] = "."
    return Layout(tuple("".join(row) for row in rows))


def _frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    array.flags.writeable = False
    return array
