"""Chooses the size of a learner's test-time steps on validation tasks."""

from __future__ import annotations

from typing import cast

from metarl.core.episode import Collector
from metarl.core.evaluation import Batch, Data, State, evaluate
from metarl.core.learner import Learner, ScalableLearner
from metarl.core.tasks import AnyDistribution

STEP_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def choose_step_scale(
    learner: Learner[State, Data, Batch],
    collector: Collector[State, Data],
    distribution: AnyDistribution,
    *,
    num_tasks: int = 40,
    num_steps: int = 3,
    seed: int = 0,
    batch_size: int | None = None,
) -> tuple[Learner[State, Data, Batch], dict[float, float]]:
    """Scales the learner's test-time steps by the factor with the best mean score after steps 1 to `num_steps`.

    Args:
        learner: any learner; one without the trait `step_size_can_scale` stays as it is.
        collector: collects its data.
        distribution: the task distribution.
        num_tasks: validation episodes.
        num_steps: K.
        seed: as in `evaluate`.
        batch_size: as in `evaluate`.

    Returns:
        The learner with the best of `STEP_SCALES`, and the score of each; no scores if there is nothing to scale.
    """
    if num_steps < 1 or not learner.traits.step_size_can_scale:
        return learner, {}
    scalable = cast("ScalableLearner[State, Data, Batch]", learner)
    scores = {}
    for factor in STEP_SCALES:
        curve = evaluate(
            scalable.with_step_scale(factor),
            collector,
            distribution,
            num_tasks=num_tasks,
            num_steps=num_steps,
            seed=seed,
            batch_size=batch_size,
            split="train",
        )
        scores[factor] = float(curve.mean[1:].mean())
    best = max(scores, key=lambda factor: scores[factor])
    return scalable.with_step_scale(best), scores
