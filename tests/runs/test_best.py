"""The choice of the best checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metarl.core.learner import Traits
from metarl.runs.best import best_iteration


@pytest.mark.parametrize(
    ("score_name", "steps", "others", "best"),
    [
        ("return", 1, {}, 2),
        ("accuracy", 5, {}, 3),
        ("mse", 1, {}, 3),
        ("mse", 0, {}, 2),
        ("accuracy", 1, {"support": "shot"}, 3),
        ("accuracy", 1, {"trains_jointly": True}, 3),
    ],
)
def test_the_best_is_by_the_learners_own_steps_and_direction(
    score_name: str, steps: int, others: dict[str, Any], best: int, tmp_path: Path
) -> None:
    """Iteration 1 has no checkpoint and iteration 4 no evaluation. Step 2 is the last evaluated one: it counts for a
    learner of shots and for one that trains jointly."""
    scores = {1: (9, 9, 9), 2: (1, 3, 1), 3: (2, 1, 3)}
    rows = [{"iteration": i, **{f"meta_test/step_{k}": x for k, x in enumerate(row)}} for i, row in scores.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"iteration": 4}]))
    for iteration in (2, 3, 4):
        (tmp_path / "checkpoints" / f"iteration_00000{iteration}").mkdir(parents=True)
    traits = Traits(unit="gradient steps", **others)
    learner: Any = SimpleNamespace(traits=traits, num_adaptation_steps=steps, score_name=score_name)
    assert best_iteration(tmp_path, learner) == best  # as in old runs, without validation scores
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 4, "meta_validation/score": 0.0, "meta_test/step_0": 0.0}) + "\n")
    assert best_iteration(tmp_path, learner) == 4  # scores on test tasks no longer count
