"""Chooses the size of a learner's test-time steps on validation tasks."""

from __future__ import annotations

from typing import Any, cast

from metarl.core.episode import Collector
from metarl.core.evaluation import evaluate
from metarl.core.learner import Learner, ScalableLearner
from metarl.core.tasks import TaskDistribution

STEP_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def choose_step_scale(
    learner: Learner[Any, Any, Any],
    collector: Collector[Any, Any],
    distribution: TaskDistribution[Any],
    *,
    num_tasks: int = 40,
    num_steps: int = 3,
    seed: int = 0,
    batch_size: int | None = None,
) -> tuple[Learner[Any, Any, Any], dict[float, float]]:
    """Chooses the size of the test-time steps on validation tasks: the best mean score after steps 1 to `num_steps`.

    Args:
        learner: any learner; one without the trait `step_size_can_scale` stays as it is.
        collector: brings its data.
        distribution: the task distribution.
        num_tasks: validation episodes.
        num_steps: K.
        seed: as in `evaluate`.
        batch_size: as in `evaluate`.

    Returns:
        The learner with the best of `STEP_SCALES` as the factor on its steps, and the score of each; none were tried if
        that is empty.
    """
    if num_steps < 1 or not learner.traits.step_size_can_scale:
        return learner, {}
    scalable = cast(ScalableLearner[Any, Any, Any], learner)
    scores = {}
    for factor in STEP_SCALES:
        scaled = scalable.with_step_scale(factor)
        settings: dict[str, Any] = {
            "num_tasks": num_tasks,
            "num_steps": num_steps,
            "seed": seed,
            "split": "train",
            "batch_size": batch_size,
        }
        scores[factor] = float(evaluate(scaled, collector, distribution, **settings).mean[1:].mean())
    best = max(scores, key=lambda factor: scores[factor])
    return scalable.with_step_scale(best), scores
