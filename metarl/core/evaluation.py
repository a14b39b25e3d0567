"""Adapts to test tasks and scores the learner after every step.

Shape legend: K num_steps, T distinct tasks, R replicates of each task.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from metarl.core.curve import AdaptationCurve
from metarl.core.episode import Collected, Collector, run_episodes
from metarl.core.errors import require
from metarl.core.learner import AnyLearner, Learner, ScoreName
from metarl.core.seeds import EVALUATION_ITERATION, VALIDATION_ITERATION, Purpose, Seeds, generator
from metarl.core.statistics import Array
from metarl.core.tasks import AnyDistribution, Split, TaskDistribution, Tasks, draw, list_tasks

State = TypeVar("State")
Batch = TypeVar("Batch")
Data = TypeVar("Data", bound=Collected)

_logger = logging.getLogger(__name__)


class EvaluationObserver(Protocol):
    """Gets the data of an evaluation, for records beside the curve."""

    def begin(self, tasks: Tasks, *, num_replicates: int, num_steps: int) -> None:
        """Called at the start of an evaluation.

        Args:
            tasks: the distinct tasks.
            num_replicates: episodes of each task. Those of one task are numbered one after another.
            num_steps: the last adaptation step.
        """

    def record(self, step: int, data: Any, *, first: int) -> None:
        """Called with the data of a batch of episodes that scores their states after `step` adaptation steps.

        Args:
            step: from 0 to `num_steps`.
            data: one row per episode.
            first: the number of the first of these episodes.
        """


def evaluate(
    learner: Learner[State, Data, Batch],
    collector: Collector[State, Data],
    distribution: AnyDistribution,
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

    All tasks of a finite test split are evaluated, with `num_tasks // len(split)` replicates of each (at least one). Of
    an infinite split, `num_tasks` tasks are drawn. The result depends on the learner and these arguments only: its
    random numbers are not those of training.

    Args:
        learner: any learner.
        collector: collects its data.
        distribution: the task distribution.
        num_tasks: number of episodes.
        num_steps: K.
        seed: of all random numbers.
        batch_size: episodes at a time; None = all.
        on_batch: called with (episodes done, episodes in all).
        split: "train" evaluates on validation tasks: tasks of the training split, with random numbers of their own. If
            a finite training split has more than `num_tasks` tasks, `num_tasks` of them are drawn.
        observer: gets all data that scores a state.

    Raises:
        InputError: `distribution` is not a task distribution.
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
    known = not np.isnan(success).all()
    success = np.nan_to_num(success)  # some environments report success only when there is one
    spent = np.mean(steps, axis=0) if len(steps[0]) == len(values) else np.arange(float(len(values)))
    return AdaptationCurve(
        unit=learner.traits.unit,
        score=learner.score_name,
        tasks=tuple(tasks),
        values=values.reshape(len(values), len(tasks), replicates),
        env_steps=tuple(float(step) for step in spent),
        splits=distribution.splits,
        seed=seed,
        success=success.reshape(-1, len(tasks), replicates) if known else None,
    )


def coverage(distribution: AnyDistribution, num_tasks: int) -> tuple[int, str]:
    """The number of episodes that `evaluate` runs for `num_tasks`, and the reason if the two differ."""
    finite = list_tasks(distribution, "test")
    if finite is None:
        return num_tasks, ""
    count = len(finite) * _replicates(num_tasks, finite)
    reason = f"{count} episodes are run: the family has {len(finite)} test tasks, and each is run equally often"
    return count, reason if count != num_tasks else ""


def _replicates(num_tasks: int, finite: Tasks) -> int:
    return max(1, num_tasks // len(finite))


def own_steps(learner: AnyLearner, last: int) -> int:
    """The number of adaptation steps whose score ranks checkpoints: the learner's own number, but at most `last`.

    `last` is the last evaluated step. A learner that counts shots or trains jointly has no own number and uses `last`.
    """
    numberless = learner.traits.support == "shot" or learner.traits.trains_jointly
    return last if numberless else min(learner.num_adaptation_steps, last)


def score_rows(scores: Sequence[Tensor]) -> Array:
    """Scores as [K + 1, tasks]: one row per state, or one row per unit if the learner scores a whole curve at once."""
    last = scores[-1].detach().cpu().double()
    rows = last.T if last.dim() == 2 else torch.stack([score.detach().cpu().double() for score in scores])
    array: Array = rows.numpy()
    return array


def _finite(values: Array, score: ScoreName) -> Array:
    """`values`, with the worst float32 number for scores that are not finite. Warns about tasks that diverged."""
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
