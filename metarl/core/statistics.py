"""Point estimates and intervals of scores.

The interval of one run is the percentile bootstrap over its evaluation tasks. For a finite family, it resamples the
replicates within each task. The interval of several runs on the same tasks is `crossed_interval`.

References: Agarwal et al. 2021, arXiv:2108.13264 (interquartile mean, stratified bootstrap); Owen 2007,
arXiv:0712.1111 (crossed samples); Cochran 1964, Biometrics 20 (adding the half-widths of two t intervals).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_RESAMPLES = 10_000
LEVEL = 0.95


def interquartile_mean(values: Array) -> Array:
    """Mean of the middle half of the last axis; weights are fractional if its length is not a multiple of four."""
    ordered = np.sort(values, axis=-1)
    size = ordered.shape[-1]
    position = np.arange(size)
    weights = np.clip(np.minimum(position + 1, 0.75 * size) - np.maximum(position, 0.25 * size), 0.0, 1.0)
    return np.asarray((ordered * weights).sum(-1) / weights.sum())


def worst_decile(values: Array, *, higher_is_better: bool) -> Array:
    """Mean of the worst tenth (at least one) of the last axis."""
    ordered = np.sort(values, axis=-1)
    count = max(1, values.shape[-1] // 10)
    return np.asarray((ordered[..., :count] if higher_is_better else ordered[..., -count:]).mean(-1))


def bootstrap(
    values: Array, rng: np.random.Generator, *, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL
) -> tuple[Array, Array]:
    """Percentile interval of the mean over the last axis.

    All leading entries share their resamples: the interval of a difference of two paired rows is that of their
    difference.

    Args:
        values: [..., n].
        rng: draws the resamples.
        num_resamples: number of resamples.
        level: coverage in (0, 1).

    Returns:
        Low and high, [...].
    """
    size = values.shape[-1]
    counts = rng.multinomial(size, np.full(size, 1.0 / size), size=num_resamples)
    return interval(values @ (counts.T / size), level=level)


def stratified_bootstrap(
    values: Array, rng: np.random.Generator, *, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL
) -> tuple[Array, Array]:
    """Interval of the mean over the last two axes [..., strata, n], resampling within each stratum."""
    size = values.shape[-1]
    means = np.zeros((*values.shape[:-2], num_resamples))
    for stratum in range(values.shape[-2]):
        counts = rng.multinomial(size, np.full(size, 1.0 / size), size=num_resamples)
        means += values[..., stratum, :] @ (counts.T / size)
    return interval(means / values.shape[-2], level=level)


def crossed_interval(values: Array, rng: np.random.Generator, *, level: float = LEVEL) -> tuple[Array, Array]:
    """Interval of the mean score of several seeds that all met the same tasks with the same random numbers.

    Seeds and tasks are two crossed samples. (For a finite family they are seeds and replicates; the tasks are fixed.)
    The variance of each is estimated from the same table. The squared half-width is the sum of two squares: Student's t
    with S - 1 degrees of freedom times the standard error from the seeds, and Student's t times that from the tasks.
    Both contain the interaction of seeds and tasks, so its variance is subtracted from that of the seeds. For the
    difference of two agents, pass the values of one minus those of the other: it is then paired by task and seed.

    Coverage of a nominal 95 % interval of three seeds, simulated with the variances of the results table
    (`scripts/simulate_coverage.py`). Averages are over the agents and budgets of one family:

    - this interval: 94 to 96 % on average, 89 to 98 % for a single agent and budget;
    - bootstrap of seeds, then of tasks within each seed: 77 to 94 % on average, 66 % at least;
    - bootstrap of seeds and common tasks jointly: 84 to 98 % on average, 69 % at least.

    Three seeds are too few to resample.

    With one task and one replicate, only seeds vary: the interval is Student's t of the seeds and does not cover other
    tasks. With one seed, it is the percentile bootstrap of its tasks or replicates and does not cover other seeds.

    Args:
        values: [..., S, T, R]: S seeds, T tasks, R replicates of each task. With R = 1, the tasks are a sample of the
            family; with R > 1, they are the whole family.
        rng: draws the resamples of a single seed.
        level: coverage in (0, 1).

    Returns:
        Low and high, [...].
    """
    if values.shape[-1] == 1:
        values = values.swapaxes(-1, -2)  # the tasks are what varies, in a single stratum
    num_seeds, num_strata, size = values.shape[-3:]
    if num_seeds == 1:
        return stratified_bootstrap(values[..., 0, :, :], rng, level=level)
    mean = values.mean((-3, -2, -1))
    by_seed = values.mean(-1, keepdims=True)  # [..., S, T, 1]
    by_unit = values.mean(-3, keepdims=True)  # [..., 1, T, R]
    rest = values - by_seed - by_unit + by_unit.mean(-1, keepdims=True)
    units = num_strata * max(1, size - 1)  # degrees of freedom
    # Squared standard errors of the mean, each with its share of the interaction.
    seed = values.mean((-2, -1)).var(-1, ddof=1) / num_seeds
    task = ((by_unit - by_unit.mean(-1, keepdims=True)) ** 2).sum((-3, -2, -1)) / units / (num_strata * size)
    both = (rest**2).sum((-3, -2, -1)) / (units * (num_seeds - 1)) / (num_seeds * num_strata * size)
    t_seed, t_task = student_quantile(num_seeds - 1, level), student_quantile(units, level)
    half = np.sqrt(t_seed**2 * np.maximum(seed - both, 0.0) + t_task**2 * task)
    return np.asarray(mean - half), np.asarray(mean + half)


@functools.cache
def student_quantile(degrees: int, level: float = LEVEL) -> float:
    """t such that the central `level` of Student's distribution lies in [-t, t]."""
    # With t = sqrt(degrees) tan(angle), the density of the angle is proportional to cos(angle)^(degrees - 1).
    angles = np.linspace(0.0, 0.5 * np.pi, 100_001)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return float(np.sqrt(degrees) * np.tan(np.interp(level * below[-1], below, angles)))


def interval(resampled: Array, *, level: float = LEVEL) -> tuple[Array, Array]:
    """The central `level` of the last axis."""
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(resampled, [tail, 100.0 - tail], axis=-1)
    return np.asarray(low), np.asarray(high)
