"""Point estimates and bootstrap intervals of scores.

One run: resample the evaluation tasks (or, of a finite family, the replicates within each task). Several runs: resample
the seeds, then the tasks within each seed. Intervals are percentile intervals.

Reference: Agarwal et al. 2021, arXiv:2108.13264 (interquartile mean, stratified bootstrap).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_RESAMPLES = 10_000
LEVEL = 0.95


def interquartile_mean(values: Array) -> Array:
    """Mean of the middle half of the last axis; fractional weights where its length is no multiple of four."""
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


def hierarchical_bootstrap(
    values: Array, rng: np.random.Generator, *, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL
) -> tuple[Array, Array]:
    """Interval of the mean over the last two axes [..., seeds, tasks], resampling seeds, then tasks within each."""
    num_seeds, num_tasks = values.shape[-2:]
    size = num_seeds * num_tasks
    counts = np.empty((num_resamples, size))
    for i in range(num_resamples):
        seeds = rng.integers(num_seeds, size=(num_seeds, 1))
        tasks = rng.integers(num_tasks, size=(num_seeds, num_tasks))
        counts[i] = np.bincount((seeds * num_tasks + tasks).ravel(), minlength=size)
    means = values.reshape(*values.shape[:-2], size) @ (counts.T / size)
    return interval(means, level=level)


def interval(resampled: Array, *, level: float = LEVEL) -> tuple[Array, Array]:
    """The central `level` of the last axis."""
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(resampled, [tail, 100.0 - tail], axis=-1)
    return np.asarray(low), np.asarray(high)
