from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metarl.core.curve import AdaptationCurve


def curve_of(values: Any, **settings: Any) -> AdaptationCurve:
    array = np.asarray(values, dtype=float)
    defaults: dict[str, Any] = {
        "unit": "gradient steps",
        "score": "return",
        "tasks": tuple(range(array.shape[1])),
        "env_steps": tuple(map(float, range(len(array)))),
        "splits": "identical",
    }
    return AdaptationCurve(values=array, **{**defaults, **settings})


def test_the_interval_of_success_resamples_as_that_of_the_score() -> None:
    values = np.random.default_rng(0).uniform(size=(3, 8, 1))
    report = curve_of(values, success=values).to_json()
    for name in ("ci_low", "ci_high"):
        assert report[f"success_{name}"] == report[name]


@pytest.mark.parametrize("replicates", [1, 15])
def test_means_lie_inside_their_intervals(replicates: int) -> None:
    values = np.random.default_rng(0).normal(size=(3, 8, replicates)) + 10 * np.arange(8)[:, None]
    report = curve_of(values).to_json()
    assert all(
        low < mean < high for low, mean, high in zip(report["ci_low"], report["mean"], report["ci_high"], strict=True)
    )
    widths = np.subtract(report["ci_high"], report["ci_low"])
    if replicates == 1:  # resampled over tasks, whose deviation is about 23
        assert (widths > 20).all()
    else:  # how much tasks differ is no uncertainty: each of them is always there
        np.testing.assert_allclose(widths, 2 * 1.96 / np.sqrt(8 * 15), rtol=0.25)
        low, high = np.array(report["per_task_ci_low"]), np.array(report["per_task_ci_high"])
        assert ((low < values.mean(2)) & (values.mean(2) < high)).all()


@pytest.mark.parametrize("replicates", [1, 6])
def test_a_gain_is_paired(replicates: int) -> None:
    before = np.random.default_rng(0).normal(scale=50.0, size=(1, 10, replicates))
    curve = curve_of(np.concatenate([before, before + 2.0, before - 1.0]))
    low, high = curve.interval()
    assert (high - low).min() > 5.0
    assert curve.gain(1) == pytest.approx((2.0, 2.0, 2.0))
    assert curve.gain(2) == pytest.approx((-1.0, -1.0, -1.0))
    if replicates > 1:
        assert curve.task_gain(1, 3) == pytest.approx((2.0, 2.0, 2.0))
        np.testing.assert_allclose(curve.to_json()["per_task_gain"]["ci_high"], [[0.0] * 10, [2.0] * 10, [-1.0] * 10])
