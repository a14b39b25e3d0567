from __future__ import annotations

import numpy as np
import pytest

from metarl.envs.maze_robots import route_lengths, route_nodes, wall_boxes
from metarl.envs.mazes import MEDIUM_MAZE, Layout, distances

HOOK = Layout(("#####", "#...#", "#.#.#", "#.###", "#####"))


def lengths(layout, goal, places):
    """Lengths of routes to `goal` in cells, from places [n, 2]; cell (r, c) has its centre at (r, c)."""
    nodes = route_nodes(distances(layout.walls[np.newaxis], np.array([goal])))
    cells = np.floor(places + 0.5).astype(int)
    return route_lengths(nodes.repeat(len(places), 0), cells, places - cells)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((2, 3), 0.0),
        ((3, 1), 5.0),
        ((2.75, 1), 4.75),
        ((2.75, 1.3), 4.75),  # in a corridor only the length along it counts
        ((2, 0.7), 4.0),
        ((3.4, 1), 5.0),  # into the dead end's wall
        ((1, 2), 2.0),
        ((1.5, 1), 3.5),
        ((1.25, 1.125), 3.125),  # between 3 (centre), 3.5 and 2.5 (edges) and (4 + 3 + 2) / 3 (corner)
    ],
)
def test_the_way_by_hand(place, expected):
    assert lengths(HOOK, (2, 3), np.array([place])) == pytest.approx(expected)


def test_only_cells_that_meet_count_at_a_corner():
    crossing = Layout(("####", "##.#", "#.##", "####"))  # the free cells touch, but no route connects them
    detour = Layout(("#####", "##..#", "#.#.#", "#...#", "#####"))
    near_corner = np.array([[1.501, 1.501]])
    assert np.isfinite(lengths(crossing, (1, 2), near_corner)).all()
    assert lengths(detour, (1, 2), np.array([[1.501, 1.499]])) == pytest.approx(6.0, abs=0.01)
    assert lengths(detour, (1, 2), np.array([[1.499, 1.501]])) == pytest.approx(0.0, abs=0.01)


def test_the_way_is_continuous_and_grows_no_faster_than_one_walks():
    free = ~MEDIUM_MAZE.walls
    rng = np.random.default_rng(0)
    moved = 1e-3 * rng.standard_normal((20000, 2))
    places = MEDIUM_MAZE.free_cells[rng.integers(len(MEDIUM_MAZE.free_cells), size=20000)]
    places = places + rng.uniform(-0.5, 0.5, (20000, 2))
    stays = free[tuple(np.floor(places + moved + 0.5).astype(int).T)]
    goal = tuple(MEDIUM_MAZE.free_cells[-1])
    change = np.abs(lengths(MEDIUM_MAZE, goal, places + moved) - lengths(MEDIUM_MAZE, goal, places))
    assert (change[stays] <= 2.0 * np.abs(moved[stays]).sum(1)).all()
    assert np.median(change[stays]) > 1e-4
    assert stays.mean() > 0.99


def test_nothing_is_gained_on_top_of_a_wall():
    assert lengths(HOOK, (2, 3), np.array([[2.0, 2.0], [2.4, 2.4], [0.0, 4.0]])).tolist() == [6.0] * 3


def test_boxes_cover_the_walls_and_nothing_else():
    boxes = wall_boxes(MEDIUM_MAZE, 2.0, 0.5)
    assert (boxes[:, 0, 2] == 0.25).all()
    assert (boxes[:, 1, 2] == 0.25).all()
    assert (4.0 * boxes[:, 1, :2].prod(1)).sum() == 4.0 * MEDIUM_MAZE.walls.sum()
    rows, columns = MEDIUM_MAZE.walls.shape
    for row, column in np.ndindex(rows, columns):
        centre = np.array([2.0 * (column - (columns - 1) / 2), 2.0 * ((rows - 1) / 2 - row)])
        inside = (np.abs(boxes[:, 0, :2] - centre) < boxes[:, 1, :2]).all(1)
        assert inside.sum() == MEDIUM_MAZE.walls[row, column]
