"""Scores of a method that learns nothing, on the episodes of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metarl.core.seeds import EVALUATION_ITERATION, Purpose, Seeds, generator
from metarl.core.statistics import bootstrap
from metarl.fewshot.base.examples import ExampleTaskDistribution


def evaluate_baseline(
    distribution: ExampleTaskDistribution[Any], tasks: Sequence[Any], *, seed: int = 0, batch_size: int = 20
) -> dict[str, Any] | None:
    """The score of the distribution's baseline on the test episodes of `evaluate`, or None where there is none.

    Returns:
        JSON-ready: `name`, `mean`, `ci_low`, `ci_high`.
    """
    scores = []
    for start in range(0, len(tasks), batch_size):
        batch = tasks[start : start + batch_size]
        seeds = Seeds(seed, EVALUATION_ITERATION, tuple(range(start, start + len(batch))), evaluation=True)
        score = distribution.baseline(distribution.support(batch, seeds), distribution.query(batch, seeds))
        if score is None:
            return None
        scores.append(score.double().numpy())
    values = np.concatenate(scores)
    low, high = bootstrap(values, generator(seed, 0, Purpose.BOOTSTRAP))
    return {
        "name": distribution.baseline_name,
        "mean": float(values.mean()),
        "ci_low": float(low),
        "ci_high": float(high),
    }
