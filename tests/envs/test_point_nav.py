from __future__ import annotations

import numpy as np
import pytest

from metarl.envs.point_nav import Goal, PointNav
from metarl.errors import InputError


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


def test_bad_settings_are_named():
    with pytest.raises(InputError, match=r"task\.horizon = 0"):
        PointNav(horizon=0)
    with pytest.raises(InputError, match=r"task\.test_goals = 'papers': unknown; did you mean 'paper'"):
        PointNav(test_goals="papers")
