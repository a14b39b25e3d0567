from __future__ import annotations

import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs.point_nav import Goal, PointNav, PointNavSparse
from metarl.testing.tasks import check_task_distribution


def paper_env():
    family = PointNav()
    goals = family.all_tasks()
    env = family.make_vector_env(len(goals))
    env.set_tasks(goals)
    env.reset(seed=0)
    return env, np.array([(goal.x, goal.y) for goal in goals])


def returns(env, controller):
    total = np.zeros(env.num_envs)
    observations = np.zeros((env.num_envs, 2))
    for _ in range(env.horizon):
        observations, rewards, *_ = env.step(controller(observations))
        total += rewards
    return total


def test_never_moving_scores_what_it_does_on_the_papers_goals():
    env, _ = paper_env()
    assert returns(env, np.zeros_like).mean() == pytest.approx(-40.08, abs=0.005)


def test_going_straight_to_the_goal_scores_the_optimum_on_the_papers_goals():
    env, goals = paper_env()
    assert returns(env, lambda at: (goals - at) / 0.1).mean() == pytest.approx(-0.54, abs=0.005)


def test_one_step_by_hand():
    env = PointNav(horizon=2).make_vector_env(3)
    env.set_tasks([Goal(0.4, 0.0), Goal(0.105, -0.045), Goal(0.12, -0.05)])
    env.reset(seed=0)
    obs, rewards, terminated, truncated, _ = env.step(np.array([[1.0, 3.0], [5.0, -0.5], [5.0, -0.5]], np.float32))
    np.testing.assert_allclose(obs, [[0.1, 0.1], [0.1, -0.05], [0.1, -0.05]], rtol=1e-6)
    np.testing.assert_allclose(rewards, [-np.hypot(0.3, 0.1), -np.hypot(0.005, 0.005), -0.02], rtol=1e-6)
    assert terminated.tolist() == [False, True, False]
    assert not truncated.any()
    obs, rewards, terminated, truncated, _ = env.step(np.ones((3, 2), np.float32))
    np.testing.assert_allclose(obs, [[0.2, 0.2], [0.1, -0.05], [0.2, 0.05]], rtol=1e-6)
    assert rewards[1] == 0.0
    assert truncated.tolist() == [True, False, True]
    assert obs.dtype == np.float32
    np.testing.assert_array_equal(env.reset()[0], np.zeros((3, 2)))


def test_training_goals_fill_the_square_and_test_goals_are_the_papers():
    family = PointNav()
    assert family.splits == "same distribution"
    assert family.all_tasks("train") is None
    goals = np.array([(goal.x, goal.y) for goal in family.sample(1000, np.random.default_rng(0))])
    assert (goals.min(0) < -0.49).all()
    assert (goals.max(0) > 0.49).all()
    assert np.abs(goals).max() <= 0.5
    paper = family.all_tasks()
    assert len(set(paper)) == 40
    assert len(set(family.sample(40, np.random.default_rng(0), split="test"))) == 40
    assert set(family.sample(100, np.random.default_rng(0), split="test")) <= set(paper)


def test_test_goals_may_be_sampled():
    family = PointNav(test_goals="sampled")
    assert family.all_tasks() is None
    drawn = family.sample(5, np.random.default_rng(0), split="test")
    assert not set(drawn) & set(PointNav().all_tasks())


def test_the_scene_is_the_plane_and_positions_are_what_is_observed():
    family = PointNav()
    scene = family.scene(Goal(0.25, -0.5))
    assert (scene.start, scene.goal, scene.walls) == ((0.0, 0.0), (0.25, -0.5), ())
    observations = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(family.positions(observations), observations)


def test_bad_settings_are_named():
    with pytest.raises(InputError, match=r"task\.horizon = 0"):
        PointNav(horizon=0)
    with pytest.raises(
        InputError, match=r"task\.test_goals = 'papers': must be one of 'paper', 'sampled'; did you mean 'paper'"
    ):
        PointNav(test_goals="papers")


def sparse_env(*angles, **settings):
    family = PointNavSparse(**settings)
    goals = [Goal(float(np.cos(angle)), float(np.sin(angle))) for angle in angles]
    env = family.make_vector_env(len(goals))
    env.set_tasks(goals)
    env.reset(seed=0)
    return env, np.array([(goal.x, goal.y) for goal in goals])


@pytest.mark.parametrize(("reward", "expected"), [("sparse", [0.81, 0.0, 1.0]), ("dense", [-0.19, -0.21, 0.0])])
def test_one_step_by_hand_with_the_sparse_reward(reward, expected):
    env = PointNavSparse(reward=reward).make_vector_env(3)
    env.set_tasks([Goal(0.29, 0.0), Goal(0.1, 0.21), Goal(0.1, -0.05)])
    env.reset(seed=0)
    obs, rewards, terminated, truncated, infos = env.step(np.array([[3.0, 0.0], [1.0, 0.0], [5.0, -0.5]], np.float32))
    np.testing.assert_allclose(obs, [[0.1, 0.0], [0.1, 0.0], [0.1, -0.05]], rtol=1e-6)
    np.testing.assert_allclose(rewards, expected, atol=1e-7)
    assert infos["success"].tolist() == [True, False, True]
    assert not (terminated | truncated).any()


def test_the_sparse_goal_pays_as_long_as_it_is_kept_and_ends_nothing():
    env, goals = sparse_env(0.3, 1.2, 2.0, horizon=15)
    arrived = np.zeros(3, bool)
    at = np.zeros((3, 2))
    for t in range(15):
        at, rewards, terminated, truncated, infos = env.step((goals - at) / 0.1)
        arrived |= infos["success"]
        assert not terminated.any()
        assert truncated.all() == (t == 14)
        if t >= 10:
            np.testing.assert_allclose(rewards, 1.0)
    assert arrived.all()


def test_never_moving_scores_nothing_and_a_walk_along_the_half_circle_finds_every_goal():
    env, _ = sparse_env(*np.linspace(0.0, np.pi, 50))
    assert not returns(env, np.zeros_like).any()
    env.reset(seed=0)
    angles = np.concatenate((np.zeros(10), np.linspace(0.0, np.pi, 45)))
    way = np.minimum(np.arange(1, 56) / 10.0, 1.0)[:, np.newaxis] * np.stack((np.cos(angles), np.sin(angles)), 1)
    at = np.zeros((50, 2))
    found = np.zeros(50, bool)
    for place in way:
        at, *_, infos = env.step((place - at) / 0.1)
        found |= infos["success"]
    assert found.all()


def test_sparse_goals_fill_the_upper_half_circle_in_both_splits():
    family = PointNavSparse()
    assert family.splits == "same distribution"
    for split in ("train", "test"):
        assert family.all_tasks(split) is None
        goals = family.sample(2000, np.random.default_rng(0), split=split)
        x, y = np.array([(goal.x, goal.y) for goal in goals]).T
        np.testing.assert_allclose(np.hypot(x, y), 1.0)
        counts = np.histogram(np.arctan2(y, x), 10, (0.0, np.pi))[0]
        assert counts.sum() == 2000
        assert np.abs(counts - 200).max() < 4 * np.sqrt(200)


def test_the_sparse_family_keeps_the_contract():
    assert check_task_distribution(PointNavSparse(reward="dense")) == []
    assert check_task_distribution(PointNavSparse()) == []


def test_the_sparse_scene_shows_the_half_circle():
    family = PointNavSparse()
    scene = family.scene(Goal(0.6, 0.8))
    assert (scene.start, scene.goal, scene.goal_radius) == ((0.0, 0.0), (0.6, 0.8), 0.2)
    assert scene.extent == (-1.2, 1.2, -0.2, 1.2)
    observations = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(family.positions(observations), observations)


def test_bad_settings_of_the_sparse_family_are_named():
    with pytest.raises(InputError, match=r"task\.horizon = 0"):
        PointNavSparse(horizon=0)
    with pytest.raises(
        InputError, match=r"task\.reward = 'sprase': must be one of 'dense', 'sparse'; did you mean 'sparse'"
    ):
        PointNavSparse(reward="sprase")
