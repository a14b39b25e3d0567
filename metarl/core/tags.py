"""The names of what a run records: its TensorBoard tags, which are also the keys of `metrics.jsonl`.

`train/NAME` is what `Learner.meta_update` returns under NAME; `time/` and `health/` are written by the trainer.
"""

from __future__ import annotations

from collections.abc import Iterable

# Scores on training tasks: before the first adaptation step, after the last one, and how much better the latter is.
PRE_ADAPT = "rollout/pre_adapt/ep_rew_mean"
POST_ADAPT = "rollout/post_adapt/ep_rew_mean"
GAIN = "adapt/gain"

# Prefixes. The number of adaptation steps follows: `adapt/step_0`.
TRAIN_STEP = "adapt/step_"
TEST_STEP = "meta_test/step_"
TEST_LOW = "meta_test_ci/low_step_"
TEST_HIGH = "meta_test_ci/high_step_"
TEST_SUCCESS = "meta_test/success_step_"

VALIDATION = "meta_validation/score"
EVALUATION_PREFIXES = ("meta_test", "meta_validation")
CURVE_FIGURE = "meta_test/adaptation_curve"
ROUTES_FIGURE = "meta_test/paths"


def steps_in(tags: Iterable[str], prefix: str) -> list[int]:
    """The steps k for which `tags` hold `prefix` followed by k, in ascending order."""
    numbers = {tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)}
    return sorted(int(number) for number in numbers if number.isdecimal())
