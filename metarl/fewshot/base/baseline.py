"""The score of a method without training, on the episodes of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metarl.core.seeds import EVALUATION_ITERATION, Purpose, Seeds, generator
from metarl.core.statistics import bootstrap
from metarl.core.tasks import Task
from metarl.fewshot.base.examples import ExampleTaskDistribution


class BaselineScore(NamedTuple):
    """Mean score and its 95 % interval."""

    name: str
    mean: float
    ci_low: float
    ci_high: float


def evaluate_baseline(
    distribution: ExampleTaskDistribution[Task], tasks: Sequence[Task], *, seed: int = 0, batch_size: int = 20
) -> BaselineScore | None:
    """The score of the distribution's baseline on the test episodes of `evaluate`, or None if it has none."""
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
    return BaselineScore(distribution.baseline_name, float(values.mean()), float(low), float(high))
