"""Chooses the best checkpoint of a run: the one that `--checkpoint best` loads and that is never deleted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from metarl.core.evaluation import own_steps
from metarl.core.learner import AnyLearner
from metarl.core.tags import TEST_STEP, VALIDATION, steps_in
from metarl.runs import checkpoint
from metarl.runs.tracking import Row, read_metrics


def best_iteration(run_dir: Path, learner: AnyLearner) -> int | None:
    """The iteration with the best score on validation tasks, among those with a checkpoint.

    In a run without validation scores, the score on test tasks counts instead. Among equal scores, the earliest wins.
    None without an evaluation.
    """
    return best_of(scores_by_iteration(read_metrics(run_dir), learner), checkpoint.list_checkpoints(run_dir))


def scores_by_iteration(rows: Sequence[Row], learner: AnyLearner) -> dict[int, float]:
    """The score of each evaluated iteration that `best_iteration` compares; higher is better."""
    validated = any(VALIDATION in row for row in rows)
    scores: dict[int, float] = {}
    for row in rows:
        steps = own_steps(learner, max(steps_in(row, TEST_STEP), default=0))
        score = row.get(VALIDATION if validated else f"{TEST_STEP}{steps}")
        if score is not None and math.isfinite(score):
            scores[row["iteration"]] = -score if learner.score_name == "mse" else score
    return scores


def evaluated_part(row: Row) -> Row:
    """The part of a row that `scores_by_iteration` reads, kept in memory; empty without an evaluation."""
    scores = {tag: value for tag, value in row.items() if tag == VALIDATION or tag.startswith(TEST_STEP)}
    return {"iteration": row["iteration"], **scores} if scores else {}


def best_of(scores: Mapping[int, float], candidates: Collection[int]) -> int | None:
    """The iteration among `candidates` with the highest score, the earliest among equal ones.

    None if no candidate has a score.
    """
    among = [iteration for iteration in scores if iteration in candidates]
    return max(among, key=lambda iteration: (scores[iteration], -iteration), default=None)
