from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from metarl.envs import bandit_yardsticks
from metarl.envs.bandit import Arms, Bandit
from metarl.envs.bandit_yardsticks import (
    Play,
    exact_return,
    gittins,
    gittins_table,
    highest,
    posterior_mean,
    regret,
    simulate,
    thompson,
    tuned_ucb,
    ucb1,
    uniform,
)
from metarl.envs.random_numbers import RandomNumbers


def draw(num_episodes, num_arms, num_pulls):
    rng = np.random.default_rng(0)
    return rng.random((num_episodes, num_arms)), rng.random((num_episodes, num_pulls))


def mean_return(policy, probabilities, uniforms):
    """Mean return with less noise: the best arms pay n k / (k + 1) on average, less the expected regret."""
    num_arms, num_pulls = probabilities.shape[1], uniforms.shape[1]
    lost = regret(simulate(policy, probabilities, uniforms)[0], probabilities).sum(1)
    return num_pulls * num_arms / (num_arms + 1) - lost.mean(), lost.std() / np.sqrt(len(lost))


def test_the_optimum_of_short_episodes_to_three_digits():
    assert exact_return(5, 10) == pytest.approx(6.660, abs=5e-4)
    assert exact_return(10, 10) == pytest.approx(6.714, abs=5e-4)


def test_the_optimum_is_the_best_of_all_policies():
    """Two arms and three pulls. The seven histories of outcomes before a pull give 2^7 deterministic policies."""

    def expected(policy):
        total = Fraction(0)
        for outcomes in itertools.product((0, 1), repeat=3):
            counts, chance = [[1, 1], [1, 1]], Fraction(1)
            for pull in range(3):
                arm = policy[outcomes[:pull]]
                chance *= Fraction(counts[arm][outcomes[pull]], sum(counts[arm]))
                counts[arm][outcomes[pull]] += 1
            total += chance * sum(outcomes)
        return total

    histories = [history for length in range(3) for history in itertools.product((0, 1), repeat=length)]
    policies = itertools.product((0, 1), repeat=len(histories))
    best = max(expected(dict(zip(histories, policy, strict=True))) for policy in policies)
    assert exact_return(2, 3) == pytest.approx(float(best), abs=1e-12)


def test_the_gittins_index_is_the_best_rate_over_all_rules_for_stopping():
    """An arm with s successes, f failures and three pulls left. After each 1 or 2 outcomes, a rule goes on or stops."""
    table = gittins_table(6, resolution=4000)
    histories = [history for length in (1, 2) for history in itertools.product((0, 1), repeat=length)]
    for s, f in ((0, 0), (1, 0), (0, 2), (2, 1)):
        best = Fraction(0)
        for go_on in itertools.product((False, True), repeat=len(histories)):
            goes = dict(zip(histories, go_on, strict=True))
            paid, time = Fraction(0), Fraction(0)
            for outcomes in itertools.product((0, 1), repeat=3):
                length = next((n for n in (1, 2) if not goes[outcomes[:n]]), 3)
                counts, chance = [f + 1, s + 1], Fraction(1)
                for outcome in outcomes:
                    chance *= Fraction(counts[outcome], sum(counts))
                    counts[outcome] += 1
                paid, time = paid + chance * sum(outcomes[:length]), time + chance * length
            best = max(best, paid / time)
        assert table[3, s, f] == pytest.approx(float(best), abs=1 / 4000)


def test_the_gittins_table_has_what_an_episode_can_reach_and_falls_with_the_pulls_left():
    table = gittins_table(12)
    successes, failures = np.mgrid[:12, :12]
    for left in range(1, 13):
        np.testing.assert_array_equal(np.isfinite(table[left]), successes + failures <= 12 - left)
    np.testing.assert_allclose(table[1, 3, 2], 4 / 7, atol=1e-12)
    assert (np.diff(table[1:, 0, 0]) > 0).all()


@pytest.mark.parametrize(
    ("num_arms", "num_pulls", "most"), [(2, 4, 1e-9), (5, 10, 1e-9), (10, 10, 1e-9), (2, 10, 3e-4), (3, 12, 1.2e-3)]
)
def test_the_gittins_index_loses_nothing_or_little_against_the_optimum(num_arms, num_pulls, most):
    """With a finite horizon, the index is not optimal in general. The loss here does not depend on the resolution."""
    loss = exact_return(num_arms, num_pulls) - exact_return(num_arms, num_pulls, gittins(num_pulls))
    assert -1e-9 <= loss < most


@pytest.mark.parametrize("index", [posterior_mean, ucb1, tuned_ucb, gittins(10)])
def test_simulated_returns_meet_the_exact_ones(index):
    policy = highest(index, np.random.default_rng(1))
    mean, error = mean_return(policy, *draw(20_000, 5, 10))
    assert mean == pytest.approx(exact_return(5, 10, index), abs=4 * error)


@pytest.mark.parametrize(
    ("name", "at_5_10", "at_10_10"),
    [
        ("uniform", 5.0, 5.0),
        ("thompson", 5.85, 5.58),
        ("ucb1", 5.69, 4.99),
        ("tuned_ucb", 6.66, 6.71),
        ("posterior_mean", 6.61, 6.72),
        ("gittins", 6.66, 6.71),
    ],
)
def test_returns_of_ten_pulls_are_the_known_ones(name, at_5_10, at_10_10):
    """The known returns were simulated with 20,000 episodes; their standard error is 0.016."""
    for num_arms, known in ((5, at_5_10), (10, at_10_10)):
        mean, error = mean_return(policy_called(name, 10), *draw(20_000, num_arms, 10))
        assert mean == pytest.approx(known, abs=3 * np.hypot(error, 0.016) + 0.005)


@pytest.mark.parametrize(
    ("name", "at_5", "at_10"),
    [
        ("uniform", 50.0, 50.0),
        ("thompson", 75.1, 76.9),
        ("ucb1", 66.1, 63.5),
        ("tuned_ucb", 78.1, 83.0),
        ("posterior_mean", 75.8, 79.3),
        ("gittins", 78.6, 83.8),
    ],
)
def test_returns_of_a_hundred_pulls_are_the_known_ones(name, at_5, at_10):
    """The known returns have standard errors of 0.11 (5 arms) and 0.08 (10 arms)."""
    for num_arms, known, known_error in ((5, at_5, 0.11), (10, at_10, 0.08)):
        mean, error = mean_return(policy_called(name, 100), *draw(4000, num_arms, 100))
        assert mean == pytest.approx(known, abs=3 * np.hypot(error, known_error) + 0.05)


def policy_called(name, num_pulls):
    rng = np.random.default_rng(1)
    if name in ("uniform", "thompson"):
        return getattr(bandit_yardsticks, name)(rng)
    return highest(gittins(num_pulls) if name == "gittins" else getattr(bandit_yardsticks, name), rng)


def test_the_simulator_and_the_environment_play_by_the_same_rules():
    family = Bandit(num_arms=4, num_pulls=30)
    env = family.make_vector_env(50)
    probabilities, _ = draw(50, 4, 30)
    env.set_tasks([Arms(tuple(row)) for row in probabilities])
    env.reset(seed=0)
    uniforms = RandomNumbers(np.arange(50, dtype=np.uint64), np.zeros(50, np.uint64), np.random.default_rng).uniforms(
        30
    )
    arms, rewards = simulate(thompson(np.random.default_rng(0)), probabilities, uniforms)
    np.testing.assert_array_equal(np.stack([env.step(row)[1] for row in arms.T], 1), rewards)


def test_a_policy_sees_all_counts_and_its_last_pull():
    seen = []

    def policy(play):
        seen.append((play.successes.copy(), play.failures.copy(), play.last_arms, play.last_rewards, play.num_pulls))
        return np.array([play.pull % 2, 1])

    probabilities, uniforms = np.array([[1.0, 0.0], [0.5, 0.4]]), np.array([[0.9] * 3, [0.3, 0.6, 0.3]])
    arms, rewards = simulate(policy, probabilities, uniforms)
    assert arms.tolist() == [[0, 1, 0], [1, 1, 1]]
    assert rewards.tolist() == [[1, 0, 1], [1, 0, 1]]
    successes, failures, last_arms, last_rewards, num_pulls = seen[2]
    assert successes.tolist() == [[1, 0], [0, 1]]
    assert failures.tolist() == [[0, 1], [0, 1]]
    assert (last_arms.tolist(), last_rewards.tolist(), num_pulls) == ([1, 1], [0, 0], 3)
    assert (seen[0][2].tolist(), seen[0][3].tolist()) == ([0, 0], [0, 0])
    np.testing.assert_allclose(regret(arms, probabilities), [[0.0, 1.0, 0.0], [0.1] * 3])


def play_with(successes, failures, pull, num_episodes=1):
    successes, failures = (np.tile(counts, (num_episodes, 1)) for counts in (successes, failures))
    nothing = np.zeros(num_episodes, np.int64)
    return Play(successes, failures, pull, 9, nothing, nothing)


def test_thompson_pulls_an_arm_with_the_chance_that_it_is_best():
    """P(Beta(2, 1) > Beta(1, 1)) = 2/3."""
    play = play_with([1, 0], [0, 0], 1, num_episodes=20_000)
    assert (thompson(np.random.default_rng(0))(play) == 0).mean() == pytest.approx(2 / 3, abs=0.014)


def test_ties_are_broken_at_random():
    play = play_with([2, 0, 2], [0, 0, 0], 4, num_episodes=9000)
    chosen = np.bincount(highest(posterior_mean, np.random.default_rng(0))(play), minlength=3)
    assert chosen[1] == 0
    assert abs(chosen[0] - 4500) < 4 * np.sqrt(9000) / 2
    assert (np.bincount(uniform(np.random.default_rng(0))(play)) > 2800).all()


def test_indices_by_hand():
    play = play_with([3, 0, 0], [1, 2, 0], 6)
    log = np.log(6)
    means = np.array([[4 / 6, 1 / 4, 1 / 2]])
    np.testing.assert_allclose(posterior_mean(play), means)
    np.testing.assert_allclose(ucb1(play), [[3 / 4 + np.sqrt(log / 2), np.sqrt(log), np.inf]])
    np.testing.assert_allclose(tuned_ucb(play), means + 0.1 * np.sqrt(2 * np.log(7) / np.array([[5, 3, 1]])))
