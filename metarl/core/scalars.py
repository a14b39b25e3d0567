"""The scores of training and evaluation as scalars, by the tags of `metarl.core.tags`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarl.core import tags
from metarl.core.curve import AdaptationCurve
from metarl.core.data import Episodes
from metarl.core.learner import ScoreName


def curve_scalars(curve: AdaptationCurve) -> dict[str, float]:
    """An evaluation's scores with the ends of their 95 % intervals; success rates where they are known."""
    low, high = curve.interval()
    by_step = {tags.TEST_STEP: curve.mean, tags.TEST_LOW: low, tags.TEST_HIGH: high}
    if curve.success is not None:
        by_step[tags.TEST_SUCCESS] = curve.success.mean((1, 2))
    return {f"{prefix}{step}": float(value) for prefix, values in by_step.items() for step, value in enumerate(values)}


def update_scalars(
    episodes: Episodes[Any, Any], metrics: Mapping[str, float], score_name: ScoreName
) -> dict[str, float]:
    """One meta-update's mean score after each step, the gain of the last step, and what the update returned.

    A learner that adapts in its update returns the scores among `metrics`; it may leave out some steps.
    """
    steps = {step: float(score.mean()) for step, score in enumerate(episodes.scores)}
    steps = {step: metrics[f"{tags.TRAIN_STEP}{step}"] for step in tags.steps_in(metrics, tags.TRAIN_STEP)} or steps
    scalars = {f"{tags.TRAIN_STEP}{step}": value for step, value in steps.items()}
    if steps:  # empty if the update adapts to no task
        last = scalars[tags.POST_ADAPT] = steps[max(steps)]
        if 0 in steps:
            scalars[tags.PRE_ADAPT] = steps[0]
            scalars[tags.GAIN] = last - steps[0] if score_name != "mse" else steps[0] - last
    return scalars | {f"train/{name}": value for name, value in metrics.items() if name not in scalars}
