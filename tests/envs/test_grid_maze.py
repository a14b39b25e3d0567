from __future__ import annotations

import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs.grid_maze import GridMaze
from metarl.envs.mazes import STEPS, U_MAZE, Layout, MazeTask, distances
from metarl.testing.tasks import check_task_distribution

UP, RIGHT, DOWN, LEFT = range(4)
U_TASK = MazeTask(U_MAZE, (1, 1), (3, 1))
U_ROUTE = [RIGHT, RIGHT, DOWN, DOWN, LEFT, LEFT]


def started(tasks, **settings):
    family = GridMaze(**{"size": 5, **settings})
    env = family.make_vector_env(len(tasks))
    env.set_tasks(tasks)
    return family, env, env.reset(seed=0)[0]


def walk(task, *actions, **settings):
    """Cells, rewards, ends and successes along `actions`."""
    family, env, _ = started([task], **settings)
    steps = []
    for action in actions:
        obs, rewards, terminated, _, infos = env.step(np.array([action]))
        assert obs in env.observation_space
        cell = divmod(int(obs[0, : family.size**2].argmax()), family.size)
        steps.append((cell, rewards[0], bool(terminated[0]), bool(infos["success"][0])))
    return [list(column) for column in zip(*steps, strict=True)]


def towards_goals(tasks):
    """For each task: the distance from the start, and for every cell the first action of a shortest route."""
    lengths = distances(np.stack([task.layout.walls for task in tasks]), np.array([task.goal for task in tasks]))
    beside = np.stack([np.roll(lengths, (-down, -right), (1, 2)) for down, right in STEPS])
    starts = np.array([task.start for task in tasks])
    return lengths[np.arange(len(tasks)), starts[:, 0], starts[:, 1]], beside.argmin(0).reshape(len(tasks), -1)


def test_moves_and_walls():
    cells, rewards, ended, success = walk(U_TASK, UP, LEFT, DOWN, RIGHT, DOWN, RIGHT, RIGHT, DOWN, UP)
    assert cells == [(1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 3), (1, 3), (2, 3), (1, 3)]
    assert rewards == [-0.01] * 9
    assert not any(ended + success)


def test_the_goal_pays_and_ends_the_trajectory():
    cells, rewards, ended, success = walk(U_TASK, *U_ROUTE, RIGHT)
    assert cells[-2:] == [(3, 1), (3, 1)]
    assert rewards == [-0.01] * 5 + [1.0, 0.0]
    assert ended == success == [False] * 5 + [True, False]


def test_the_dense_reward_pays_for_coming_nearer():
    _, rewards, _, _ = walk(U_TASK, LEFT, RIGHT, LEFT, *U_ROUTE, reward="dense")
    np.testing.assert_allclose(rewards, [-0.01, 0.99, -1.01, *[0.99] * 5, 1.0])


def test_observations_by_hand():
    ring = Layout(("#####", "#...#", "#.#.#", "#...#", "#####"))
    far, near = MazeTask(ring, (1, 1), (3, 3)), MazeTask(U_MAZE, (1, 3), (2, 3))
    _, env, observations = started([far, near])
    assert observations.shape == (2, 25 + 9 + 9)
    assert observations.dtype == np.float32
    cells, walls, goals = np.split(observations, [25, 34], 1)
    assert np.argwhere(cells).tolist() == [[0, 6], [1, 8]]
    assert walls.tolist() == [[1, 1, 1, 1, 0, 0, 1, 0, 1], [1, 1, 1, 0, 0, 1, 1, 0, 1]]
    assert np.argwhere(goals).tolist() == [[1, 7]]
    for actions in ([RIGHT, LEFT], [RIGHT, LEFT]):
        observations, *_ = env.step(np.array(actions))
    cells, walls, goals = np.split(observations, [25, 34], 1)
    assert np.argwhere(cells).tolist() == [[0, 8], [1, 6]]
    assert walls[0].tolist() == [1, 1, 1, 0, 0, 1, 1, 0, 1]
    assert not goals.any()
    observations, *_ = env.step(np.array([DOWN, LEFT]))
    assert np.argwhere(observations[:, 34:]).tolist() == [[0, 7]]


@pytest.mark.parametrize("view", [0, 1, 2, 5])
def test_the_view_is_the_maze_around_the_agent(view):
    family = GridMaze(view=view)
    rng = np.random.default_rng(0)
    tasks = family.sample(50, rng)
    _, env, observations = started(tasks, size=9, view=view)
    side = 2 * view + 1
    for _ in range(20):
        assert observations.shape == (50, 81 + 2 * side**2)
        for task, observed in zip(tasks, observations, strict=True):
            row, column = divmod(int(observed[:81].argmax()), 9)
            walls = np.pad(task.layout.walls, view, constant_values=True)
            goal = np.zeros_like(walls)
            goal[task.goal[0] + view, task.goal[1] + view] = True
            around = [plane[row : row + side, column : column + side].ravel() for plane in (walls, goal)]
            np.testing.assert_array_equal(observed[81:], np.concatenate(around))
        observations, *_ = env.step(rng.integers(4, size=50))


@pytest.mark.parametrize("reward", ["dense", "sparse"])
def test_a_shortest_way_reaches_every_goal_in_as_many_steps_as_it_has(reward):
    family = GridMaze(reward=reward)
    tasks = family.sample(300, np.random.default_rng(0))
    lengths, table = towards_goals(tasks)
    _, env, observations = started(tasks, size=9, reward=reward)
    returns = np.zeros(len(tasks))
    for t in range(family.horizon):
        actions = table[np.arange(len(tasks)), observations[:, :81].argmax(1)]
        observations, rewards, terminated, truncated, infos = env.step(actions)
        returns += rewards
        np.testing.assert_array_equal(terminated, lengths == t + 1)
        np.testing.assert_array_equal(infos["success"], terminated)
        assert not truncated.any()
    dense = lengths - 1.0 if reward == "dense" else 0.0
    np.testing.assert_allclose(returns, 1.0 - 0.01 * (lengths - 1.0) + dense)


def test_without_the_goal_a_trajectory_is_truncated_at_the_horizon_and_starts_again():
    _, env, start = started([U_TASK] * 2, horizon=2)
    env.step(np.array([RIGHT, UP]))
    _, _, terminated, truncated, _ = env.step(np.array([RIGHT, UP]))
    assert truncated.all()
    assert not terminated.any()
    np.testing.assert_array_equal(env.reset()[0], start)


def test_each_maze_of_a_batch_is_what_it_is_alone():
    tasks = GridMaze().sample(6, np.random.default_rng(0))
    actions = np.random.default_rng(1).integers(4, size=(50, 6))

    def stepped(which):
        _, env, first = started(tasks[which], size=9, reward="dense")
        return [first, *(part for row in actions for part in env.step(row[which])[:4])]

    together = stepped(slice(6))
    for i in range(6):
        for both, alone in zip(together, stepped(slice(i, i + 1)), strict=True):
            np.testing.assert_array_equal(both[i : i + 1], alone)


def test_the_splits_are_disjoint_and_the_mazes_many():
    family = GridMaze()
    assert family.splits == "disjoint"
    assert family.all_tasks() is None
    train = family.sample(2000, np.random.default_rng(0))
    test = family.sample(400, np.random.default_rng(0), split="test")
    mazes = {task.layout for task in train}
    assert not mazes & {task.layout for task in test}
    assert len(mazes) > 1800
    for task in train + test:
        assert task.start != task.goal
    lengths, _ = towards_goals(train + test)
    assert np.isfinite(lengths).all()
    assert lengths.max() <= family.horizon


def test_starts_and_goals_are_any_free_cells():
    tasks = GridMaze(size=5).sample(1500, np.random.default_rng(0))
    layout = tasks[0].layout
    pairs = [(task.start, task.goal) for task in tasks if task.layout == layout]
    cells = len(layout.free_cells)
    counts = np.array([pairs.count(pair) for pair in set(pairs)])
    assert len(counts) == cells * (cells - 1)
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_the_family_keeps_the_contract():
    assert check_task_distribution(GridMaze()) == []
    assert check_task_distribution(GridMaze(reward="dense", size=5)) == []


def test_layouts_of_another_size_are_refused():
    env = GridMaze().make_vector_env(1)
    with pytest.raises(ValueError, match="call set_tasks"):
        env.reset(seed=0)
    env.set_tasks([U_TASK])
    with pytest.raises(ValueError, match=r"must have \(9, 9\) rows and columns"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("horizon", 0, "must be an integer >= 1"),
        ("size", 3, "must be an odd integer >= 5"),
        ("size", 8, "must be an odd integer >= 5"),
        ("view", -1, "must be an integer >= 0"),
        ("reward", "spars", "must be one of .*; did you mean 'sparse'"),
    ],
)
def test_bad_settings_are_named(name, value, allowed):
    with pytest.raises(InputError, match=rf"task\.{name} = {value!r}: {allowed}"):
        GridMaze(**{name: value})


def test_the_scene_has_the_walls_and_positions_are_cells_middles():
    family, env, first = started([U_TASK])
    scene = family.scene(U_TASK)
    assert (scene.start, scene.goal, scene.goal_radius) == ((-1.0, 1.0), (-1.0, -1.0), 0.5)
    covered = np.zeros((5, 5), int)
    for x, y, width, height in scene.walls:
        rows, columns = (2.5 - y - height, 2.5 - y), (x + 2.5, x + 2.5 + width)
        covered[slice(*map(int, rows)), slice(*map(int, columns))] += 1
    np.testing.assert_array_equal(covered, U_MAZE.walls)
    route = [first] + [env.step(np.array([action]))[0] for action in U_ROUTE]
    expected = [(-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    np.testing.assert_array_equal(family.positions(np.stack(route, 1))[0], expected)
