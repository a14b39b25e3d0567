from __future__ import annotations

import pickle

import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs.bandit import Arms, Bandit


def test_arms_pay_with_their_own_chances():
    env = Bandit(num_arms=3, num_pulls=2000).make_vector_env(2)
    tasks = [Arms((0.0, 0.3, 1.0)), Arms((0.9, 0.0, 0.5))]
    env.set_tasks(tasks)
    env.reset(seed=0)
    for arm in range(3):
        env.reset()
        paid = np.stack([env.step(np.array([arm, arm]))[1] for _ in range(2000)])
        assert set(np.unique(paid)) <= {0.0, 1.0}
        np.testing.assert_allclose(paid.mean(0), [task.probabilities[arm] for task in tasks], atol=0.04)


def test_a_trajectory_is_its_pulls_and_shows_nothing():
    family = Bandit(num_arms=2, num_pulls=3)
    assert family.horizon == 3
    env = family.make_vector_env(2)
    first, _ = env.reset(seed=0)
    for pull in range(3):
        obs, _, terminated, truncated, _ = env.step(np.array([0, 1]))
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (pull == 2)
        np.testing.assert_array_equal(obs, first)
    assert obs.shape == (2, 1)
    assert not obs.any()
    assert obs in env.observation_space


def test_random_numbers_follow_the_seed_and_change_from_reset_to_reset():
    family = Bandit(num_pulls=40)

    def pulls(env, **reset):
        env.reset(**reset)
        return np.stack([env.step(np.array([2, 2, 2]))[1] for _ in range(40)], 1)

    env = family.make_vector_env(3)
    first = pulls(env, seed=[5, 6, 7])
    second = pulls(env)
    assert (first != second).any(1).all()
    assert len({tuple(row) for row in first}) == 3
    other = family.make_vector_env(3)
    np.testing.assert_array_equal(pulls(other, seed=[7, 5, 6]), first[[2, 0, 1]])
    np.testing.assert_array_equal(pulls(other, seed=[None, None, 7]), [second[2], second[0], first[2]])
    np.testing.assert_array_equal(pulls(other)[2], second[2])
    assert (pulls(family.make_vector_env(3)) != pulls(family.make_vector_env(3))).any(1).all()


def test_chances_are_uniform():
    drawn = Bandit(num_arms=4).sample(2000, np.random.default_rng(0))
    chances = np.array([task.probabilities for task in drawn])
    assert chances.shape == (2000, 4)
    np.testing.assert_allclose(chances.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(chances.var(0), 1 / 12, atol=0.01)
    assert drawn == Bandit(num_arms=4).sample(2000, np.random.default_rng(0))


def test_bad_settings_are_named():
    with pytest.raises(InputError, match=r"task\.num_arms = 1: must be an integer >= 2"):
        Bandit(num_arms=1)
    with pytest.raises(InputError, match=r"task\.num_pulls = 0: must be an integer >= 1"):
        Bandit(num_pulls=0)


def test_a_distribution_survives_pickling():
    copy = pickle.loads(pickle.dumps(Bandit(num_pulls=9)))
    assert copy == Bandit(num_pulls=9)
    assert copy.horizon == 9
