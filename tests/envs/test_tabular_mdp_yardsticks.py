from __future__ import annotations

import itertools

import numpy as np
import pytest

from metarl.envs.tabular_mdp import TabularMDP
from metarl.envs.tabular_mdp_yardsticks import (
    Play,
    bonus,
    planner,
    posterior_mean,
    posterior_sample,
    simulate,
    stack,
    uniform,
    value_iteration,
)

NUM_MDPS = 400
NUM_EPISODES = 10


def test_value_iteration_finds_the_best_of_all_policies():
    """2 states, 2 actions, 3 steps: all 2^6 policies. The value of each is the sum over all its paths."""
    transitions, mean_rewards = stack(TabularMDP(num_states=2, num_actions=2).sample(5, np.random.default_rng(0)))

    def worth(chances, rewards, policy, start):
        total = 0.0
        for path in itertools.product((0, 1), repeat=3):
            chance, paid, state = 1.0, 0.0, start
            for step, following in enumerate(path):
                action = policy[2 * step + state]
                paid += rewards[state, action]
                chance *= chances[state, action, following]
                state = following
            total += chance * paid
        return total

    values, actions = value_iteration(transitions, mean_rewards, 3)
    for mdp, (chances, rewards) in enumerate(zip(transitions, mean_rewards, strict=True)):
        for start in (0, 1):
            policies = itertools.product((0, 1), repeat=6)
            best = max(worth(chances, rewards, policy, start) for policy in policies)
            assert values[mdp, start] == pytest.approx(best, abs=1e-12)
            assert worth(chances, rewards, actions[:, mdp].ravel(), start) == pytest.approx(best, abs=1e-12)


@pytest.fixture(scope="module")
def game():
    transitions, mean_rewards = stack(TabularMDP().sample(NUM_MDPS, np.random.default_rng(0)))
    rng = np.random.default_rng(1)
    shape = (NUM_MDPS, NUM_EPISODES, 10)
    return transitions, mean_rewards, rng.random(shape), rng.standard_normal(shape)


@pytest.fixture(scope="module")
def optimum(game):
    return NUM_EPISODES * value_iteration(*game[:2], 10)[0][:, 0]


def returns(policy, game):
    return simulate(policy, *game).sum((1, 2))


def test_the_known_mdps_optimum_is_the_known_one(optimum):
    assert optimum.mean() == pytest.approx(219.0, abs=3 * np.hypot(optimum.std() / np.sqrt(NUM_MDPS), 0.7))


def test_playing_the_optimum_earns_it(game, optimum):
    played = returns(planner(lambda play: game[:2]), game)
    assert (played - optimum).mean() == pytest.approx(0.0, abs=4 * (played - optimum).std() / np.sqrt(NUM_MDPS))
    again = returns(planner(lambda play: game[:2], every_step=True), game)
    np.testing.assert_array_equal(again, played)


@pytest.mark.parametrize(
    ("policy", "known"),
    [
        (uniform(np.random.default_rng(2)), 99.6),
        (planner(posterior_sample(np.random.default_rng(2))), 132.9),
        (planner(posterior_mean), 148.8),
        (planner(bonus(0.5)), 152.8),
    ],
    ids=["random", "posterior sampling", "greedy", "bonus"],
)
def test_returns_are_the_known_ones(policy, known, game):
    """The known returns were simulated on 1,000 MDPs; their 95 % interval is +-1.7."""
    played = returns(policy, game)
    assert played.mean() == pytest.approx(known, abs=3 * np.hypot(played.std() / np.sqrt(NUM_MDPS), 0.85))


def test_planning_before_every_step_is_better_and_the_order_of_the_planners_stands(game):
    greedy, curious, fresh = (
        returns(policy, game)
        for policy in (planner(posterior_mean), planner(bonus()), planner(bonus(), every_step=True))
    )
    for better, worse, least in ((curious, greedy, 1.0), (fresh, curious, 4.0)):
        gain = better - worse
        assert gain.mean() - 2 * gain.std() / np.sqrt(NUM_MDPS) > 0.0
        assert gain.mean() > least


def seen(transitions, reward_sums):
    nothing = np.zeros(len(transitions), np.int64)
    return Play(transitions, reward_sums, 0, 0, 10, nothing, nothing, nothing.astype(float))


def test_posteriors_by_hand():
    """Two states, one action. Seen: three steps from state 0 to state 1, with rewards that sum to 5."""
    play = seen(np.array([[[[0.0, 3.0]], [[0.0, 0.0]]]]), np.array([[[5.0], [0.0]]]))
    transitions, mean_rewards = posterior_mean(play)
    np.testing.assert_allclose(transitions[0, :, 0], [[1 / 5, 4 / 5], [1 / 2, 1 / 2]])
    np.testing.assert_allclose(mean_rewards[0, :, 0], [6 / 4, 1.0])
    _, with_bonus = bonus(0.5)(play)
    np.testing.assert_allclose(with_bonus[0, :, 0], [6 / 4 + 0.25, 1.5])


def test_posterior_samples_have_the_posteriors_moments():
    """State 0: Dirichlet(1, 4), mean 1/5, variance 4/150, reward N(6/4, 1/4). State 1: Dirichlet(1, 1), N(1, 1)."""
    counts = np.tile(np.array([[[0.0, 3.0]], [[0.0, 0.0]]]), (20_000, 1, 1, 1))
    sums = np.tile(np.array([[5.0], [0.0]]), (20_000, 1, 1))
    transitions, mean_rewards = posterior_sample(np.random.default_rng(0))(seen(counts, sums))
    np.testing.assert_allclose(transitions.sum(-1), 1.0)
    np.testing.assert_allclose(transitions[..., 0].mean(0)[:, 0], [1 / 5, 1 / 2], atol=0.008)
    np.testing.assert_allclose(transitions[..., 0].var(0)[:, 0], [4 / 150, 1 / 12], atol=0.003)
    np.testing.assert_allclose(mean_rewards.mean(0)[:, 0], [6 / 4, 1.0], atol=0.03)
    np.testing.assert_allclose(mean_rewards.var(0)[:, 0], [1 / 4, 1.0], atol=0.04)


def test_a_policy_sees_what_has_happened():
    """One MDP that goes 0 -> 1 -> 0 with every action."""
    log = []

    def policy(play):
        log.append(
            (play.episode, play.step, int(play.states[0]), int(play.last_actions[0]), float(play.last_rewards[0]))
        )
        counts.append((play.transitions.sum(), play.transitions[0, 0, 1, 1], play.reward_sums[0, 0, 1]))
        return np.array([play.step % 2 == 0], np.int64)

    counts = []
    swap = np.zeros((1, 2, 2, 2))
    swap[0, 0, :, 1] = swap[0, 1, :, 0] = 1.0
    rewards = simulate(policy, swap, np.array([[[1.0, 2.0], [3.0, 4.0]]]), np.full((1, 2, 3), 0.5), np.zeros((1, 2, 3)))
    np.testing.assert_array_equal(rewards, [[[2.0, 3.0, 2.0]] * 2])
    assert log == [
        (0, 0, 0, 0, 0.0),
        (0, 1, 1, 1, 2.0),
        (0, 2, 0, 0, 3.0),
        (1, 0, 0, 1, 2.0),
        (1, 1, 1, 1, 2.0),
        (1, 2, 0, 0, 3.0),
    ]
    assert counts == [(0, 0, 0), (1, 1, 2), (2, 1, 2), (3, 2, 4), (4, 3, 6), (5, 3, 6)]
