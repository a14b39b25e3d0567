from __future__ import annotations

import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs.grid_nav import GoalCell, GridNav

STAY, UP, RIGHT, DOWN, LEFT = range(5)


def walk(goal, *actions, **settings):
    """Cells and rewards along `actions`."""
    family = GridNav(**settings)
    env = family.make_vector_env(1)
    env.set_tasks([goal])
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space
    cells, rewards = [], []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(np.array([action]))
        assert obs.sum() == 1.0
        assert not terminated.any()
        assert truncated.all() == (len(cells) == family.horizon - 1)
        y, x = divmod(int(obs[0].argmax()), family.size)
        cells.append((x, y))
        rewards.append(reward[0])
    return cells, rewards


def test_moves_and_walls():
    cells, _ = walk(GoalCell(4, 4), LEFT, DOWN, RIGHT, UP, UP, STAY, LEFT, LEFT, DOWN)
    assert cells == [(0, 0), (0, 0), (1, 0), (1, 1), (1, 2), (1, 2), (0, 2), (0, 2), (0, 1)]
    cells, _ = walk(GoalCell(2, 0), *[RIGHT] * 3, *[UP] * 3, size=3)
    assert cells == [(1, 0), (2, 0), (2, 0), (2, 1), (2, 2), (2, 2)]


def test_the_goal_pays_as_long_as_it_is_kept_and_ends_nothing():
    _, rewards = walk(GoalCell(2, 0), RIGHT, RIGHT, STAY, LEFT, RIGHT)
    assert rewards == [-0.1, 1.0, 1.0, -0.1, 1.0]


def test_a_trajectory_is_truncated_at_the_horizon_and_starts_again():
    env = GridNav(horizon=2).make_vector_env(2)
    start, _ = env.reset(seed=0)
    env.step(np.array([UP, RIGHT]))
    assert env.step(np.array([UP, RIGHT]))[3].all()
    np.testing.assert_array_equal(env.reset()[0], start)
    assert start[:, 0].tolist() == [1.0, 1.0]


def test_the_goals_are_the_cells_away_from_the_start():
    family = GridNav()
    goals = {(goal.x, goal.y) for goal in family.all_tasks()}
    assert len(goals) == len(family.all_tasks()) == 21
    assert goals == {(x, y) for x in range(5) for y in range(5)} - {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert family.splits == "identical"
    assert family.all_tasks("train") == family.all_tasks("test")
    drawn = family.sample(21_000, np.random.default_rng(0))
    counts = np.array([drawn.count(goal) for goal in family.all_tasks()])
    assert counts.sum() == 21_000
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(1000)


def test_every_environment_has_its_own_goal():
    env = GridNav().make_vector_env(2)
    env.set_tasks([GoalCell(0, 2), GoalCell(2, 0)])
    env.reset(seed=0)
    env.step(np.array([UP, UP]))
    assert env.step(np.array([UP, UP]))[1].tolist() == [1.0, -0.1]


@pytest.mark.parametrize(("name", "value", "low"), [("size", 2, 3), ("horizon", 0, 1)])
def test_bad_settings_are_named(name, value, low):
    with pytest.raises(InputError, match=rf"task\.{name} = {value}: must be an integer >= {low}"):
        GridNav(**{name: value})


def test_the_scene_has_the_cells_as_unit_squares_within_walls():
    family = GridNav(size=4)
    scene = family.scene(GoalCell(2, 3))
    assert (scene.start, scene.goal) == ((0.5, 0.5), (2.5, 3.5))
    env = family.make_vector_env(2)
    routes = [family.positions(env.reset(seed=0)[0])]
    for actions in ([RIGHT, UP], [RIGHT, UP], [UP, UP]):
        routes.append(family.positions(env.step(np.array(actions))[0]))
    np.testing.assert_array_equal(np.stack(routes, 1)[0], [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [2.5, 1.5]])
    np.testing.assert_array_equal(np.stack(routes, 1)[1], [[0.5, 0.5], [0.5, 1.5], [0.5, 2.5], [0.5, 3.5]])
    corners = np.array([[(x, y), (x + width, y + height)] for x, y, width, height in scene.walls])
    inside = ((corners[:, 1] > 0) & (corners[:, 0] < 4)).all(1)
    assert not inside.any()  # walls lie around the cells
    np.testing.assert_allclose([corners.min((0, 1)), corners.max((0, 1))], [[-0.1, -0.1], [4.1, 4.1]])
