from __future__ import annotations

import pickle

import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs.random_numbers import RandomNumbers
from metarl.envs.tabular_mdp import MDP, TabularMDP
from metarl.envs.tabular_mdp_yardsticks import simulate, stack

# Action 0 leads from 0 to 1, from 1 to 2 and from 2 to 0. Action 1 in state 0 stays with probability 0.3.
ROUND = MDP(
    transitions=(
        ((0.0, 1.0, 0.0), (0.3, 0.0, 0.7)),
        ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
        ((1.0, 0.0, 0.0), (0.5, 0.5, 0.0)),
    ),
    mean_rewards=((1.0, -1.0), (2.0, 0.0), (4.0, 8.0)),
)
FAMILY = TabularMDP(num_states=3, num_actions=2, horizon=4)


def states(observations):
    assert observations.dtype == np.float32
    np.testing.assert_array_equal(np.sort(observations, 1)[:, ::-1], np.eye(1, 3).repeat(len(observations), 0))
    return observations.argmax(1)


def test_states_and_rewards_follow_the_task():
    num_envs = 20_000
    env = FAMILY.make_vector_env(num_envs)
    env.set_tasks([ROUND] * num_envs)
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space
    assert (states(obs) == 0).all()
    obs, rewards, *_ = env.step(np.ones(num_envs, int))
    assert rewards.mean() == pytest.approx(-1.0, abs=0.03)
    assert rewards.var() == pytest.approx(1.0, abs=0.04)
    first = states(obs)
    assert (first == 1).sum() == 0
    assert (first == 0).mean() == pytest.approx(0.3, abs=0.013)
    assert rewards[first == 0].mean() == pytest.approx(rewards[first == 2].mean(), abs=0.07), (
        "next state and reward noise are independent"
    )
    obs, rewards, terminated, truncated, _ = env.step(np.zeros(num_envs, int))
    np.testing.assert_array_equal(states(obs), np.where(first == 0, 1, 0))
    assert rewards[first == 0].mean() == pytest.approx(1.0, abs=0.06)
    assert rewards[first == 2].mean() == pytest.approx(4.0, abs=0.04)
    assert not (terminated | truncated).any()


def test_a_trajectory_ends_at_the_horizon_and_starts_again_in_the_first_state():
    env = FAMILY.make_vector_env(2)
    env.set_tasks([ROUND, ROUND])
    env.reset(seed=0)
    for step in range(FAMILY.horizon):
        obs, _, terminated, truncated, _ = env.step(np.zeros(2, int))
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (step == FAMILY.horizon - 1)
    assert (states(obs) == 1).all()
    assert (states(env.reset()[0]) == 0).all()


def test_the_environment_and_the_yardsticks_play_by_the_same_rules():
    family = TabularMDP()
    tasks = family.sample(50, np.random.default_rng(0))
    env = family.make_vector_env(50)
    env.set_tasks(tasks)
    env.reset(seed=1)
    actions = np.random.default_rng(2).integers(5, size=(10, 50))
    rewards = np.stack([env.step(row)[1] for row in actions], 1)
    numbers = RandomNumbers(np.arange(1, 51, dtype=np.uint64), np.zeros(50, np.uint64), np.random.default_rng)
    uniforms, noise = numbers.uniforms(10)[:, np.newaxis], numbers.normals(10)[:, np.newaxis]
    played = simulate(lambda play: actions[play.step], *stack(tasks), uniforms, noise)
    np.testing.assert_array_equal(played[:, 0], rewards)


def test_random_numbers_follow_the_seed_and_change_from_reset_to_reset():
    def rewards(env, tasks, **reset):
        env.set_tasks(tasks)
        env.reset(**reset)
        return np.stack([env.step(np.array([0, 1, 0]))[1] for _ in range(4)], 1)

    env, tasks = FAMILY.make_vector_env(3), FAMILY.sample(3, np.random.default_rng(0))
    first = rewards(env, tasks, seed=[5, 6, 7])
    second = rewards(env, tasks)
    assert (first != second).all()
    order = [2, 1, 0]
    again = rewards(FAMILY.make_vector_env(3), [tasks[i] for i in order], seed=[7, 6, 5])
    np.testing.assert_array_equal(again, first[order])


def test_mdps_are_drawn_as_in_the_paper():
    drawn = TabularMDP().sample(500, np.random.default_rng(0))
    transitions, mean_rewards = stack(drawn)
    assert transitions.shape == (500, 10, 5, 10)
    np.testing.assert_allclose(transitions.sum(-1), 1.0)
    # A flat Dirichlet's entries have mean 1/S and variance (1/S)(1 - 1/S) / (S + 1).
    np.testing.assert_allclose(transitions.mean((0, 1, 2)), 0.1, atol=0.003)
    np.testing.assert_allclose(transitions.var((0, 1, 2)), 0.09 / 11, atol=0.0005)
    assert mean_rewards.shape == (500, 10, 5)
    assert mean_rewards.mean() == pytest.approx(1.0, abs=0.03)
    assert mean_rewards.var() == pytest.approx(1.0, abs=0.04)
    assert drawn == TabularMDP().sample(500, np.random.default_rng(0))
    assert len(set(drawn)) == 500


def test_a_task_prints_shortly_and_tells_itself_from_others():
    task, other = TabularMDP().sample(2, np.random.default_rng(0))
    assert str(task).startswith("MDP(10 states, 5 actions, checksum ")
    assert str(task) != str(other)
    copy = pickle.loads(pickle.dumps(task))
    assert copy == task
    assert str(copy) == str(task)


@pytest.mark.parametrize(("name", "value", "low"), [("num_states", 1, 2), ("num_actions", 1, 2), ("horizon", 0, 1)])
def test_bad_settings_are_named(name, value, low):
    with pytest.raises(InputError, match=rf"task\.{name} = {value}: must be an integer >= {low}"):
        TabularMDP(**{name: value})
