"""References for learned bandit players: classical policies, the exact optimum, and regret.

Everything is for Bernoulli arms with a uniform prior on each arm's probability, and runs over many episodes at once.
Play every policy with the same `probabilities` and `uniforms`, so that only the policies differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Play:
    """The information that a policy has before a pull.

    Attributes:
        successes: pulls of each arm that paid so far, [num_episodes, num_arms].
        failures: pulls of each arm that did not pay so far, [num_episodes, num_arms].
        pull: number of the next pull, from 0.
        num_pulls: pulls of a whole episode.
        last_arms: the arms pulled last, [num_episodes]; 0 before the first pull.
        last_rewards: their rewards, [num_episodes]; 0 before the first pull.
    """

    successes: Counts
    failures: Counts
    pull: int
    num_pulls: int
    last_arms: Counts
    last_rewards: Counts


Policy: TypeAlias = Callable[[Play], Counts]
"""Returns the arms to pull, [num_episodes]. A policy with a memory (a learned one) must clear it at pull 0."""
Index: TypeAlias = Callable[[Play], Floats]
"""Returns a value for each arm, [num_episodes, num_arms], from that arm's counts and the time."""


def simulate(policy: Policy, probabilities: Floats, uniforms: Floats) -> tuple[Counts, Counts]:
    """Plays whole episodes.

    Args:
        policy: chooses the arms.
        probabilities: each arm's probability of paying, [num_episodes, num_arms].
        uniforms: uniform numbers in [0, 1), [num_episodes, num_pulls]; a pull pays if its number is below the arm's
            probability.

    Returns:
        Arms and rewards, [num_episodes, num_pulls] each.
    """
    num_episodes, num_pulls = uniforms.shape
    episodes = np.arange(num_episodes)
    successes, failures = np.zeros((2, *probabilities.shape), np.int64)
    arms, rewards = np.zeros((2, num_pulls, num_episodes), np.int64)
    last_arms, last_rewards = np.zeros((2, num_episodes), np.int64)
    for pull in range(num_pulls):
        last_arms = policy(Play(successes, failures, pull, num_pulls, last_arms, last_rewards))
        last_rewards = np.where(uniforms[:, pull] < probabilities[episodes, last_arms], 1, 0)
        arms[pull], rewards[pull] = last_arms, last_rewards
        successes[episodes, last_arms] += last_rewards
        failures[episodes, last_arms] += 1 - last_rewards
    return arms.T, rewards.T


def regret(arms: Counts, probabilities: Floats) -> Floats:
    """Expected reward that each pull loses compared with the best arm, [num_episodes, num_pulls]."""
    lost: Floats = probabilities.max(1, keepdims=True) - np.take_along_axis(probabilities, arms, 1)
    return lost


def highest(index: Index, rng: np.random.Generator) -> Policy:
    """Pulls the arm with the highest index. Ties are broken at random.

    Ties matter: a greedy policy that takes the first of the tied arms earns 1 to 2 % less.
    """

    def policy(play: Play) -> Counts:
        values = index(play)
        ties = values >= values.max(1, keepdims=True) - 1e-9
        return np.asarray(np.where(ties, rng.random(values.shape), -1.0).argmax(1))

    return policy


def uniform(rng: np.random.Generator) -> Policy:
    """Pulls arms at random."""
    return lambda play: rng.integers(play.successes.shape[1], size=len(play.successes))


def thompson(rng: np.random.Generator) -> Policy:
    """Draws a bandit from the posterior and pulls its best arm.

    Source: Thompson, "On the Likelihood that One Unknown Probability Exceeds Another in View of the Evidence of Two
    Samples", Biometrika 25, 1933.
    """
    return lambda play: rng.beta(play.successes + 1, play.failures + 1).argmax(1)


def posterior_mean(play: Play) -> Floats:
    """The greedy index: the arm's expected probability of paying, given a uniform prior."""
    mean: Floats = (play.successes + 1) / (play.successes + play.failures + 2)
    return mean


def ucb1(play: Play) -> Floats:
    """Mean reward plus sqrt(2 ln t / n) before pull t = 0, 1, ..., for an arm pulled n times; untried arms come first.

    Source: Auer, Cesa-Bianchi, Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", Machine Learning 47,
    2002.
    """
    pulls = play.successes + play.failures
    tried = np.maximum(pulls, 1)
    bound: Floats = play.successes / tried + np.sqrt(2 * np.log(max(play.pull, 1)) / tried)
    return np.where(pulls == 0, np.inf, bound)


def tuned_ucb(play: Play) -> Floats:
    """Posterior mean plus 0.1 sqrt(2 ln t / (n + 1)) before pull t = 1, 2, ..., for an arm pulled n times."""
    pulls = play.successes + play.failures
    index: Floats = posterior_mean(play) + 0.1 * np.sqrt(2 * np.log(play.pull + 1) / (pulls + 1))
    return index


def gittins(num_pulls: int, *, resolution: int = 500) -> Index:
    """The finite-horizon Gittins index for episodes of `num_pulls` pulls. 100 pulls take a few seconds.

    Suppose that each pull of an arm costs a charge, and that one may stop after any of the m pulls left. The index is
    the charge at which the best rule for stopping breaks even.

    Source: Nino-Mora, "Computing a Classic Index for Finite-Horizon Bandits", INFORMS Journal on Computing 23, 2011.

    Args:
        num_pulls: pulls of a whole episode.
        resolution: number of steps of the grid of charges on [0, 1]; between two of them, the index is interpolated.
    """
    table = gittins_table(num_pulls, resolution=resolution)
    return lambda play: table[num_pulls - play.pull, play.successes, play.failures]


@cache
def gittins_table(num_pulls: int, *, resolution: int = 500) -> Floats:
    """The index, [pulls left, successes, failures], for episodes of `num_pulls` pulls; NaN for impossible counts.

    `resolution` is as in `gittins`.
    """
    charges = np.linspace(0.0, 1.0, resolution + 1)[:, np.newaxis, np.newaxis]
    table = np.full((num_pulls + 1, num_pulls, num_pulls), np.nan)
    successes, failures = np.mgrid[:num_pulls, :num_pulls]
    mean = (successes + 1) / (successes + failures + 2)
    worth = np.zeros((resolution + 1, num_pulls + 1, num_pulls + 1))
    for left in range(1, num_pulls + 1):
        size = num_pulls - left + 1
        chance = mean[:size, :size]
        worth = chance - charges + chance * worth[:, 1:, :-1] + (1.0 - chance) * worth[:, :-1, 1:]
        # The worth falls with the charge, so the break-even charge follows the last charge with worth >= 0.
        last = np.minimum((worth >= 0.0).sum(0) - 1, resolution - 1)[np.newaxis]
        before, after = (np.take_along_axis(worth, last + step, 0)[0] for step in (0, 1))
        reached = successes[:size, :size] + failures[:size, :size] < size
        table[left, :size, :size] = np.where(reached, (last[0] + before / (before - after)) / resolution, np.nan)
        np.maximum(worth, 0.0, out=worth)
    return table


def exact_return(num_arms: int, num_pulls: int, index: Index | None = None) -> float:
    """Expected reward of an episode of the Bayes-optimal policy, or of `highest(index)` for a deterministic `index`.

    Dynamic programming over the arms' counts. The counts are sorted, because all arms have the same prior: 3,519 states
    for 5 arms and 10 pulls.
    """

    @cache
    def value(arms: tuple[tuple[int, int], ...], pull: int) -> float:
        if pull == num_pulls:
            return 0.0
        if index is None:
            return max(after(arms, i, pull) for i in choices(arms))
        counts = np.array(arms).T[:, np.newaxis]
        indices = index(Play(counts[0], counts[1], pull, num_pulls, np.zeros(1, np.int64), np.zeros(1, np.int64)))[0]
        best = np.flatnonzero(indices >= indices.max() - 1e-9)
        return float(np.mean([after(arms, int(i), pull) for i in best]))

    def choices(arms: tuple[tuple[int, int], ...]) -> list[int]:
        return [i for i in range(num_arms) if i == 0 or arms[i] != arms[i - 1]]

    def after(arms: tuple[tuple[int, int], ...], i: int, pull: int) -> float:
        s, f = arms[i]
        paid, failed = (tuple(sorted((*arms[:i], new, *arms[i + 1 :]))) for new in ((s + 1, f), (s, f + 1)))
        chance = (s + 1) / (s + f + 2)
        return chance * (1.0 + value(paid, pull + 1)) + (1.0 - chance) * value(failed, pull + 1)

    return value(((0, 0),) * num_arms, 0)
