"""Adapts to test tasks and scores the learner after every step.

Shape legend: K num_steps, T distinct tasks, R replicates of each task.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from metarl.core.curve import AdaptationCurve
from metarl.core.episode import Collected, Collector, run_episodes
from metarl.core.errors import require
from metarl.core.learner import Learner, ScoreName
from metarl.core.seeds import EVALUATION_ITERATION, VALIDATION_ITERATION, Purpose, Seeds, generator
from metarl.core.statistics import Array
from metarl.core.tasks import Split, TaskDistribution, draw, list_tasks

_logger = logging.getLogger(__name__)


class EvaluationObserver(Protocol):
    """Sees the data of an evaluation, for records besides the curve."""

    def begin(self, tasks: Sequence[Any], *, num_replicates: int, num_steps: int) -> None:
        """An evaluation begins.

        Args:
            tasks: the distinct tasks.
            num_replicates: episodes of each task, which come one after another.
            num_steps: the last adaptation step.
        """

    def record(self, step: int, data: Any, *, first: int) -> None:
        """`data` scores the state after `step` steps.

        Args:
            step: adaptation steps done.
            data: of some episodes.
            first: the number of the first of these episodes.
        """


def evaluate(
    learner: Learner[Any, Any, Any],
    collector: Collector[Any, Any],
    distribution: TaskDistribution[Any],
    *,
    num_tasks: int = 40,
    num_steps: int = 3,
    seed: int = 0,
    batch_size: int | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    split: Split = "test",
    observer: EvaluationObserver | None = None,
) -> AdaptationCurve:
    """Adapts to test tasks and scores the learner before and after every step.

    A finite test split is covered task by task, with `num_tasks // len(split)` replicates of each (at least one), so
    that the worst of a few tasks can be named; of an infinite one, `num_tasks` are drawn.

    Args:
        learner: any learner.
        collector: brings its data.
        distribution: the task distribution.
        num_tasks: episodes in all.
        num_steps: K.
        seed: evaluation has random numbers of its own, separate from training's, and the same whatever was trained.
        batch_size: episodes at a time; None for all.
        on_batch: called with (episodes done, episodes in all).
        split: "train" evaluates on validation tasks: from the training split, with random numbers of their own. If a
            finite training split has more than `num_tasks` tasks, `num_tasks` of them are drawn.
        observer: gets all data that scores a state.
    """
    require(isinstance(distribution, TaskDistribution), "distribution", distribution, "a task distribution, not a task")
    if split == "train":
        distribution = distribution.for_validation()
    finite = list_tasks(distribution, split)
    if finite is not None and split == "train" and len(finite) > num_tasks:
        finite = None
    iteration = EVALUATION_ITERATION if split == "test" else VALIDATION_ITERATION
    rng = generator(seed, iteration, Purpose.EVALUATION_TASKS)
    tasks = draw(distribution, num_tasks, rng, split=split) if finite is None else finite
    replicates = 1 if finite is None else _replicates(num_tasks, tasks)
    episodes = [task for task in tasks for _ in range(replicates)]
    size = batch_size or len(episodes)
    scores: list[Array] = []
    steps: list[tuple[float, ...]] = []
    success = np.full((num_steps + 1, len(episodes)), np.nan)
    if observer is not None:
        observer.begin(tasks, num_replicates=replicates, num_steps=num_steps)

    def record(first: int, step: int, data: Collected) -> None:
        if observer is not None:
            observer.record(step, data, first=first)
        rates = data.success_rates()
        if rates is not None:
            success[step, first : first + len(rates)] = rates.cpu().numpy()

    for start in range(0, len(episodes), size):
        batch = episodes[start : start + size]
        slots = tuple(range(start, start + len(batch)))
        # Given data: training classes may have too few examples for a test episode, so training's sizes are used.
        seeds = Seeds(seed, iteration, slots, evaluation=collector.acts or split == "test")
        watch = functools.partial(record, start)
        done = run_episodes(learner, collector, batch, seeds, num_steps=num_steps, on_scored=watch)
        scores.append(score_rows(done.scores))
        steps.extend([done.support_steps] * len(batch))
        if on_batch is not None:
            on_batch(start + len(batch), len(episodes))
    values = _finite(np.concatenate(scores, axis=1), learner.score_name)
    told = not np.isnan(success).all()
    success = np.nan_to_num(success)  # some environments speak of success only where there was one
    spent = np.mean(steps, axis=0) if len(steps[0]) == len(values) else np.arange(float(len(values)))
    return AdaptationCurve(
        unit=learner.traits.unit,
        score=learner.score_name,
        tasks=tuple(tasks),
        values=values.reshape(len(values), len(tasks), replicates),
        env_steps=tuple(float(step) for step in spent),
        splits=distribution.splits,
        seed=seed,
        success=success.reshape(-1, len(tasks), replicates) if told else None,
    )


def coverage(distribution: TaskDistribution[Any], num_tasks: int) -> tuple[int, str]:
    """The number of episodes that `evaluate` runs for `num_tasks`, and the reason if the two differ."""
    finite = list_tasks(distribution, "test")
    if finite is None:
        return num_tasks, ""
    count = len(finite) * _replicates(num_tasks, finite)
    reason = f"{count} episodes are run: the family has {len(finite)} test tasks, and each is run equally often"
    return count, reason if count != num_tasks else ""


def _replicates(num_tasks: int, finite: Sequence[Any]) -> int:
    return max(1, num_tasks // len(finite))


def own_steps(learner: Learner[Any, Any, Any], last: int) -> int:
    """The adaptation steps after which a learner's score counts: its own number of them, but at most `last`.

    `last` is the last evaluated step. A learner that counts shots or trains jointly has no own number: it uses `last`.
    """
    numberless = learner.traits.support == "shot" or learner.traits.trains_jointly
    return last if numberless else min(learner.num_adaptation_steps, last)


def score_rows(scores: Sequence[Tensor]) -> Array:
    """[K + 1, tasks]: one row per state; of a learner that scores every unit of one pass, one row per unit."""
    last = scores[-1].detach().cpu().double()
    rows = last.T if last.dim() == 2 else torch.stack([score.detach().cpu().double() for score in scores])
    array: Array = rows.numpy()
    return array


def _finite(values: Array, score: ScoreName) -> Array:
    """`values` with the worst float32 number for those of tasks on which adaptation diverged; says how many."""
    bad = ~np.isfinite(values)
    if bad.any():
        step = int(bad.any(1).argmax())
        count, total = int(bad[step].sum()), values.shape[1]
        worst = float(np.finfo(np.float32).max) * (1.0 if score == "mse" else -1.0)
        _logger.warning(
            "adaptation diverged: from step %d on the %s is not finite on %d of %d test tasks; counted as %.2g",
            *(step, score, count, total, worst),
        )
        values = np.where(bad, worst, values)
    return values
