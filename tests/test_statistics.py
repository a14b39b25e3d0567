from __future__ import annotations

import itertools

import numpy as np
import pytest

from metarl.statistics import (
    Array,
    bootstrap,
    hierarchical_bootstrap,
    interquartile_mean,
    interval,
    stratified_bootstrap,
    worst_decile,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def width(bounds: tuple[Array, Array]) -> Array:
    return bounds[1] - bounds[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3, 4, 100, 200], (0.5 * 2 + 3 + 4 + 0.5 * 100) / 3),  # a quarter of six is one and a half
        ([-100, 0, 3, 6, 100], (0.75 * 0 + 3 + 0.75 * 6) / 2.5),
        ([-100, 1, 2, 100], 1.5),
        ([1, 2, 6], (0.25 * 1 + 2 + 0.25 * 6) / 1.5),
        ([1, 3], 2),
        ([7], 7),
    ],
)
def test_the_interquartile_mean_of_hand_worked_cases(values: list[float], expected: float) -> None:
    assert interquartile_mean(np.array(values)) == pytest.approx(expected)


@pytest.mark.parametrize("size", range(1, 14))
def test_the_interquartile_mean_is_that_of_every_value_taken_four_times(size: int) -> None:
    values = rng(size).normal(size=(3, size))
    middle = np.sort(np.repeat(values, 4, axis=-1), axis=-1)[:, size : 3 * size]
    np.testing.assert_allclose(interquartile_mean(values), middle.mean(-1))


@pytest.mark.parametrize(("size", "worst"), [(1, 1), (9, 1), (10, 1), (19, 1), (25, 2), (40, 4)])
def test_the_worst_decile_is_a_tenth_and_at_least_one(size: int, worst: int) -> None:
    values = rng().permutation(np.arange(float(size)))
    rows = np.stack([values, values + 100.0])
    lowest = (worst - 1) / 2
    np.testing.assert_allclose(worst_decile(rows, higher_is_better=True), [lowest, lowest + 100.0])
    highest = size - 1 - lowest
    np.testing.assert_allclose(worst_decile(rows, higher_is_better=False), [highest, highest + 100.0])


def test_an_interval_cuts_equal_tails() -> None:
    low, high = interval(np.stack([np.arange(101.0), -np.arange(101.0)]), level=0.9)
    np.testing.assert_allclose((low, high), ([5.0, -95.0], [95.0, -5.0]))


def test_the_bootstrap_of_three_values_is_that_of_all_27_resamples() -> None:
    values = np.array([0.0, 1.0, 5.0])
    means = [np.mean(resample) for resample in itertools.product(values, repeat=3)]
    low, high = bootstrap(values, rng(), num_resamples=200_000, level=0.8)
    assert (low, high) == pytest.approx(np.percentile(means, [10, 90], method="inverted_cdf"))


def test_the_stratified_bootstrap_of_two_pairs_is_that_of_all_16_resamples() -> None:
    values = np.array([[0.0, 1.0], [10.0, 16.0]])
    pairs = [list(itertools.product(row, repeat=2)) for row in values]
    means = [np.mean([*first, *second]) for first, second in itertools.product(*pairs)]
    low, high = stratified_bootstrap(values, rng(), num_resamples=200_000, level=0.8)
    assert (low, high) == pytest.approx(np.percentile(means, [10, 90], method="inverted_cdf"))


def test_the_hierarchical_bootstrap_of_two_pairs_is_that_of_all_64_resamples() -> None:
    values = np.array([[0.0, 1.0], [10.0, 16.0]])
    pairs = [list(itertools.product(row, repeat=2)) for row in values]
    means = [
        np.mean([*first, *second])
        for seeds in itertools.product((0, 1), repeat=2)
        for first, second in itertools.product(pairs[seeds[0]], pairs[seeds[1]])
    ]
    low, high = hierarchical_bootstrap(values, rng(), num_resamples=10_000, level=0.75)
    assert (low, high) == pytest.approx(np.percentile(means, [12.5, 87.5], method="inverted_cdf"))


def test_the_bootstrap_covers_a_gaussian_mean_about_as_often_as_it_says() -> None:
    num_data_sets, size = 400, 100
    data = rng(1).normal(3.0, 2.0, size=(num_data_sets, size))
    low, high = bootstrap(data, rng(2), num_resamples=2_000)
    covered = ((low <= 3.0) & (high >= 3.0)).mean()
    # The percentile interval of 100 values covers 94.4 %; four binomial deviations around that.
    assert abs(covered - 0.944) < 4 * np.sqrt(0.944 * 0.056 / num_data_sets)


def test_paired_rows_share_their_resamples() -> None:
    before = rng().normal(size=(1, 30))
    rows = np.concatenate([before, before + 2.0])
    low, high = bootstrap(rows, rng(1))
    np.testing.assert_allclose([low[1] - low[0], high[1] - high[0]], 2.0)
    assert width(bootstrap(rows[1] - rows[0], rng(1))) == pytest.approx(0.0, abs=1e-12)


def test_a_stratified_interval_ignores_how_much_strata_differ() -> None:
    noise = rng().normal(size=(4, 10))
    values = noise + 100.0 * np.arange(4.0)[:, None]
    stratified = width(stratified_bootstrap(values, rng(1)))
    assert stratified == pytest.approx(width(stratified_bootstrap(noise, rng(1))))
    assert width(bootstrap(values.ravel(), rng(1))) > 20 * stratified
    low, high = stratified_bootstrap(values, rng(1))
    assert low < values.mean() < high


def test_a_hierarchical_interval_is_wider_where_seeds_differ() -> None:
    noise = rng().normal(size=(5, 40))
    values = noise + 3.0 * np.arange(5.0)[:, None]
    wide = width(hierarchical_bootstrap(values, rng(1), num_resamples=2_000))
    assert wide > 3 * width(bootstrap(values.ravel(), rng(1)))
    # Five seeds 3.0 apart: their mean has a standard error of sqrt(18 / 5).
    assert wide == pytest.approx(2 * 1.96 * np.sqrt(18 / 5), rel=0.1)


def test_leading_axes_are_kept() -> None:
    values = rng().normal(size=(3, 2, 4, 6))
    assert [bound.shape for bound in bootstrap(values, rng(), num_resamples=50)] == [(3, 2, 4)] * 2
    for function in (stratified_bootstrap, hierarchical_bootstrap):
        low, high = function(values, rng(), num_resamples=50)
        assert (low.shape, high.shape) == ((3, 2), (3, 2))
        alone_low, alone_high = function(values[1, 0], rng(), num_resamples=50)
        np.testing.assert_allclose((low[1, 0], high[1, 0]), (alone_low, alone_high))


def test_one_generator_gives_one_interval() -> None:
    values = rng().normal(size=20)
    assert bootstrap(values, rng(3)) == bootstrap(values, rng(3)) != bootstrap(values, rng(4))
