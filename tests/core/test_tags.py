from __future__ import annotations

from metarl.core.tags import TEST_STEP, TRAIN_STEP, steps_in


def test_the_steps_of_tags_are_numbers_in_ascending_order() -> None:
    row = {"meta_test/step_10": 1.0, "meta_test/step_2": 1.0, "meta_test/step_mean": 1.0, "adapt/step_0": 1.0}
    assert steps_in(row, TEST_STEP) == [2, 10]
    assert steps_in(row, TRAIN_STEP) == [0]
    assert steps_in([*row, *row], TEST_STEP) == [2, 10]  # tags of two rows
