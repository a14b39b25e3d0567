from __future__ import annotations

import pickle
from collections import deque

import numpy as np
import pytest

from metarl.envs.mazes import (
    MEDIUM_MAZE,
    U_MAZE,
    Layout,
    MazeTask,
    cells,
    centres,
    distances,
    generate,
    is_test,
)

RING = Layout(("#####", "#...#", "#.#.#", "#...#", "#####"))


def layouts(number, split="train", size=9, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return [generate(rng, size, size, split=split, **settings) for _ in range(number)]


def searched(layout, goal):
    """`distances`, cell by cell."""
    lengths = np.full(layout.walls.shape, np.inf)
    lengths[goal] = 0.0
    waiting = deque([goal])
    while waiting:
        row, column = waiting.popleft()
        for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if layout.rows[cell[0]][cell[1]] == "." and lengths[cell] == np.inf:
                lengths[cell] = lengths[row, column] + 1.0
                waiting.append(cell)
    return lengths


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("###", "#.#", "##"), "row 2 of the layout is '##': it must have 3 cells"),
        (("####", "#. #", "####"), "row 1 of the layout is '#. #': cells are '#' or '.'"),
        (("###", "#..", "###"), "row 1 of the layout is '#..': the border"),
        (("###", "..#", "###"), "row 1 of the layout is '..#': the border"),
        (("#.#", "#.#", "###"), "row 0 of the layout is '#.#': the border"),
        (("###", "#.#", "#.#"), "row 2 of the layout is '#.#': the border"),
        (("###", "###"), "no free cell"),
        ((), "no free cell"),
    ],
)
def test_a_layout_that_is_no_maze_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        Layout(rows)


def test_a_layout_is_plain_data_with_a_short_name():
    assert str(U_MAZE) == repr(U_MAZE) == "Layout(5x5, checksum ca6cac75)"  # if the checksum changes, so do the splits
    assert U_MAZE.walls.tolist() == [[c == "#" for c in row] for row in U_MAZE.rows]
    assert U_MAZE.free_cells.tolist() == [[1, 1], [1, 2], [1, 3], [2, 3], [3, 1], [3, 2], [3, 3]]
    assert pickle.loads(pickle.dumps(U_MAZE)) == U_MAZE != RING
    assert len({U_MAZE, Layout(U_MAZE.rows), RING}) == 2
    with pytest.raises(ValueError, match="read-only"):
        U_MAZE.walls[0, 0] = False


def test_a_task_starts_and_ends_in_free_cells():
    assert MazeTask(U_MAZE, (1, 1), (3, 1)) == MazeTask(Layout(U_MAZE.rows), (1, 1), (3, 1))
    with pytest.raises(ValueError, match=r"start \(2, 1\) of Layout\(5x5, checksum \w+\) is a wall"):
        MazeTask(U_MAZE, (2, 1), (3, 1))
    with pytest.raises(ValueError, match=r"goal \(0, 4\)"):
        MazeTask(U_MAZE, (1, 1), (0, 4))


def test_distances_by_hand():
    walls = np.stack([U_MAZE.walls, RING.walls])
    inf = np.inf
    border = [inf] * 5
    steps = distances(walls, np.array([(3, 1), (1, 2)]))
    first = [border, [inf, 6, 5, 4, inf], [inf, inf, inf, 3, inf], [inf, 0, 1, 2, inf], border]
    second = [border, [inf, 1, 0, 1, inf], [inf, 2, inf, 2, inf], [inf, 3, 4, 3, inf], border]
    np.testing.assert_array_equal(steps, [first, second])


def test_a_goal_out_of_reach_is_infinitely_far_and_one_in_a_wall_refused():
    apart = Layout(("#####", "#.#.#", "#####"))
    steps = distances(apart.walls[np.newaxis], np.array([(1, 1)]))
    assert (steps[0, 1, 1], steps[0, 1, 3]) == (0.0, np.inf)
    with pytest.raises(ValueError, match=r"goal \(1, 2\) of maze 1 is a wall"):
        distances(np.stack([apart.walls] * 2), np.array([(1, 1), (1, 2)]))


def test_distances_of_many_mazes_are_those_of_a_search_in_each():
    mazes = layouts(50)
    rng = np.random.default_rng(1)
    goals = np.array([rng.choice(maze.free_cells) for maze in mazes])
    steps = distances(np.stack([maze.walls for maze in mazes]), goals)
    for maze, goal, found in zip(mazes, goals.tolist(), steps, strict=True):
        np.testing.assert_array_equal(found, searched(maze, tuple(goal)))


@pytest.mark.parametrize("size", [(5, 7), (7, 5), (9, 9), (13, 11)])
def test_every_free_cell_of_a_generated_maze_can_be_reached(size):
    rng = np.random.default_rng(0)
    for _ in range(50):
        maze = generate(rng, *size, split="train")
        assert maze.walls.shape == size
        assert not maze.walls[1::2, 1::2].any()
        assert maze.walls[::2, ::2].all()
        steps = distances(maze.walls[np.newaxis], maze.free_cells[:1])[0]
        np.testing.assert_array_equal(np.isfinite(steps), ~maze.walls)


def test_open_walls_make_loops():
    def passages(maze):
        return sum((~maze.walls[1:] & ~maze.walls[:-1]).ravel()) + sum(
            (~maze.walls[:, 1:] & ~maze.walls[:, :-1]).ravel()
        )

    assert {passages(maze) - len(maze.free_cells) for maze in layouts(50, open_walls=0.0)} == {-1}  # trees
    assert {len(maze.free_cells) for maze in layouts(50, open_walls=0.0)} == {16 + 15}
    opened = np.array([len(maze.free_cells) - 31 for maze in layouts(500)])
    assert opened.mean() == pytest.approx(9 * 0.15, abs=4 * np.sqrt(9 * 0.15 * 0.85 / 500))
    with pytest.raises(ValueError, match="no maze of 5 by 5 cells for test"):
        generate(np.random.default_rng(0), 5, 5, split="test", open_walls=1.0)  # there is only one


def test_the_generator_alone_decides():
    assert layouts(5) == layouts(5) != layouts(5, seed=1)


def test_no_maze_is_both_for_training_and_for_test():
    train, test = set(layouts(2000, size=7)), set(layouts(400, "test", size=7))
    assert len(train) > 200
    assert len(test) > 40
    assert not train & test
    assert {is_test(maze) for maze in train} == {False}
    assert {is_test(maze) for maze in test} == {True}


def test_there_are_many_mazes_and_one_in_five_is_for_test():
    drawn = set(layouts(500))
    assert len(drawn) > 450
    rng = np.random.default_rng(0)
    tested = [
        is_test(Layout(tuple("".join(row) for row in np.pad(cells, 1, constant_values="#"))))
        for cells in rng.choice(["#", "."], (2000, 4, 4))
    ]
    assert np.mean(tested) == pytest.approx(1 / 5, abs=4 * np.sqrt(0.16 / 2000))
    assert [len(set(layouts(100, split, size=5))) for split in ("train", "test")] == [3, 2]


@pytest.mark.parametrize("size", [(8, 9), (9, 8), (3, 9), (9, 3)])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} by {size[1]} cells: both must be odd and at least 5"):
        generate(np.random.default_rng(0), *size, split="train")


@pytest.mark.parametrize(("maze", "num_free"), [(U_MAZE, 7), (MEDIUM_MAZE, 25)])
def test_the_fixed_mazes_are_connected(maze, num_free):
    steps = distances(maze.walls[np.newaxis], maze.free_cells[:1])
    assert np.isfinite(steps).sum() == len(maze.free_cells) == num_free


def test_the_world_has_its_origin_in_the_middle_and_y_upwards():
    np.testing.assert_array_equal(centres(np.array([(0, 0), (1, 2), (2, 4)]), (3, 5), 2.0), [(-4, 2), (0, 0), (4, -2)])
    np.testing.assert_array_equal(centres(np.array((0, 3)), (2, 4), 1.0), (1.5, 0.5))


def test_cells_are_those_whose_centres_are_nearest():
    rng = np.random.default_rng(0)
    shape, size = (4, 7), 1.5
    expected = np.stack(np.meshgrid(np.arange(4), np.arange(7), indexing="ij"), -1)
    places = centres(expected, shape, size) + rng.uniform(-0.74, 0.74, (4, 7, 2))
    np.testing.assert_array_equal(cells(places, shape, size), expected)
    np.testing.assert_array_equal(cells(np.array((5.3, 3.1)), shape, size), (-1, 7))
