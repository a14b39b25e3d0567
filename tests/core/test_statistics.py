from __future__ import annotations

import itertools

import numpy as np
import pytest

from metarl.core.statistics import (
    Array,
    bootstrap,
    crossed_interval,
    interquartile_mean,
    interval,
    stratified_bootstrap,
    student_quantile,
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


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (39, 2.0227), (1000, 1.9623)]
)
def test_students_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert student_quantile(degrees) == pytest.approx(expected, abs=1e-4)
    assert student_quantile(1, 0.5) == pytest.approx(1.0)


def test_the_crossed_interval_of_a_hand_worked_case() -> None:
    values = np.array([[0.0, 1.0], [10.0, 16.0]])[..., None]  # two seeds, two tasks
    # Squared standard errors: seeds (means 0.5 and 13) 156.25 / 2 / 2, tasks (5 and 8.5) 6.125 / 2, and the
    # interaction (residuals of 1.25) 6.25 / 4, which is part of the first.
    half = 12.7062 * np.sqrt(39.0625 - 1.5625 + 3.0625)
    assert crossed_interval(values, rng()) == pytest.approx((6.75 - half, 6.75 + half), abs=1e-3)
    # As replicates of one task, in which all tasks lie, the two columns are worth the same.
    assert crossed_interval(values.swapaxes(1, 2), rng()) == pytest.approx((6.75 - half, 6.75 + half), abs=1e-3)


def test_tasks_that_are_all_there_are_no_uncertainty() -> None:
    table = rng().normal(size=(3, 2, 20))
    moved = table + np.array([100.0, -100.0])[:, None]
    np.testing.assert_allclose(crossed_interval(moved, rng()), crossed_interval(table, rng()), atol=1e-9)
    as_sample = moved.reshape(3, 40, 1)
    assert width(crossed_interval(as_sample, rng())) > 10 * width(crossed_interval(moved, rng()))


@pytest.mark.parametrize("shape", [(3, 40, 1), (3, 2, 20), (2, 1, 1), (1, 5, 1), (1, 2, 3)])
def test_the_order_of_seeds_and_tasks_changes_no_crossed_interval(shape: tuple[int, int, int]) -> None:
    values = rng().normal(size=shape)
    mixed = values[rng(1).permutation(shape[0])][:, rng(2).permutation(shape[1])]
    tolerance = 1e-9 if shape[0] > 1 else 0.1  # one seed is resampled
    np.testing.assert_allclose(crossed_interval(values, rng()), crossed_interval(mixed, rng()), atol=tolerance)


def test_the_same_tasks_for_all_seeds_are_no_more_tasks() -> None:
    """Seeds with equal scores on forty tasks give the same information on tasks as one seed."""
    tasks = rng().normal(size=(1, 40, 1))
    half = student_quantile(39) * tasks.std(ddof=1) / np.sqrt(40)
    assert width(crossed_interval(np.repeat(tasks, 3, axis=0), rng())) == pytest.approx(2 * half)


def test_with_one_task_only_seeds_vary() -> None:
    low, high = crossed_interval(np.array([1.0, 2.0, 6.0]).reshape(3, 1, 1), rng())
    half = 4.3027 * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert (low, high) == pytest.approx((3 - half, 3 + half), abs=1e-3)


@pytest.mark.parametrize("shape", [(40, 1), (2, 20)])
def test_one_seed_has_the_bootstrap_of_its_tasks_or_replicates(shape: tuple[int, int]) -> None:
    values = rng().normal(size=(4, 1, *shape))
    alone = values[:, 0, :, 0] if shape[1] == 1 else values[:, 0]
    expected = (bootstrap if shape[1] == 1 else stratified_bootstrap)(alone, rng(1))
    np.testing.assert_array_equal(crossed_interval(values, rng(1)), expected)


@pytest.mark.parametrize("shape", [(3, 40, 1), (3, 2, 20)])
def test_equal_agents_differ_by_nothing(shape: tuple[int, int, int]) -> None:
    values = rng().normal(size=shape)
    assert crossed_interval(values - values, rng()) == (0.0, 0.0)
    low, high = crossed_interval(values + 2.0 - values, rng())
    assert (low, high) == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize(
    ("seed", "task", "rest", "least", "most"),
    [
        (0.0, 0.8, 0.2, 0.94, 0.97),
        (0.04, 0.84, 0.09, 0.94, 0.98),
        (0.6, 0.2, 0.2, 0.94, 0.97),
        (1.0, 0.0, 0.01, 0.94, 0.96),
        (0.0, 0.1, 0.9, 0.94, 0.98),
        (0.1, 0.1, 0.8, 0.91, 0.95),  # the least: the interaction hides that seeds differ
    ],
)
@pytest.mark.parametrize("shape", [(3, 40, 1), (3, 2, 20)])
def test_crossed_intervals_cover_about_as_often_as_they_say(
    shape: tuple[int, int, int], seed: float, task: float, rest: float, least: float, most: float
) -> None:
    """Over 4,000 data sets: one standard deviation of such a share is 0.3 %."""
    draw = rng(5).standard_normal
    values = np.sqrt(seed) * draw((4000, 3, 1, 1)) + np.sqrt(task) * draw((4000, 1, *shape[1:]))
    low, high = crossed_interval(values + np.sqrt(rest) * draw((4000, *shape)), rng())
    assert least < ((low <= 0.0) & (high >= 0.0)).mean() < most


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


def test_leading_axes_are_kept() -> None:
    values = rng().normal(size=(3, 2, 4, 6))
    assert [bound.shape for bound in bootstrap(values, rng(), num_resamples=50)] == [(3, 2, 4)] * 2
    low, high = stratified_bootstrap(values, rng(), num_resamples=50)
    assert (low.shape, high.shape) == ((3, 2), (3, 2))
    alone_low, alone_high = stratified_bootstrap(values[1, 0], rng(), num_resamples=50)
    np.testing.assert_allclose((low[1, 0], high[1, 0]), (alone_low, alone_high))
    low, high = crossed_interval(values, rng())
    assert (low.shape, high.shape) == ((3,), (3,))
    np.testing.assert_allclose((low[1], high[1]), crossed_interval(values[1], rng()))


def test_one_generator_gives_one_interval() -> None:
    values = rng().normal(size=20)
    assert bootstrap(values, rng(3)) == bootstrap(values, rng(3)) != bootstrap(values, rng(4))
