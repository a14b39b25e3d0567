"""Adaptation curves with intervals, and the controls that tell what made a learner better.

Shape legend: K num_steps, T distinct tasks, R replicates of each.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from metarl.core.episode import Collected, Collector, run_episodes
from metarl.core.errors import one_line, require
from metarl.core.learner import Learner, ScalableLearner, ScoreName, Unit
from metarl.core.seeds import Purpose, Seeds, generator, require_tasks
from metarl.core.statistics import Array, bootstrap, interquartile_mean, stratified_bootstrap, worst_decile
from metarl.core.tasks import Split, TaskDistribution, draw, list_tasks

SCHEMA_VERSION = 1
# Evaluation belongs to no iteration of training. These numbers take the iteration's place in the keys of
# `metarl.core.seeds`. Every recorded run depends on them: never change one.
EVALUATION_ITERATION = 1_000_003
CONTROLS_ITERATION = EVALUATION_ITERATION + 1
VALIDATION_ITERATION = EVALUATION_ITERATION + 2
STEP_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptationCurve:
    """Score on test tasks after 0, 1, ..., K units of experience.

    Attributes:
        unit: what one step consumes.
        score: what is measured.
        tasks: the T tasks.
        values: [K + 1, T, R]. A finite family has R > 1 replicates of each of its tasks; otherwise R is 1.
        env_steps: [K + 1], steps spent on one task before each point, on average.
        splits: what the distribution says of its splits.
        seed: of the resampling.
        success: [K + 1, T, R], fraction of trajectories that met the task's aim, or None where nothing tells that.
    """

    unit: Unit
    score: ScoreName
    tasks: tuple[Any, ...]
    values: Array
    env_steps: tuple[float, ...]
    splits: str
    seed: int = 0
    success: Array | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.score != "mse"

    @property
    def mean(self) -> Array:
        """[K + 1]."""
        return np.asarray(self.values.mean((1, 2)))

    def interval(self) -> tuple[Array, Array]:
        """95 % interval of the mean, low and high, each [K + 1]."""
        return self._interval(self.values)

    def gain(self, step: int) -> tuple[float, float, float]:
        """By how much the score after `step` is better than before adaptation, paired by task: mean, low, high.

        Better is positive: for a score that is better when lower, it is the score before minus the score after.
        """
        difference = self._improvement(step)[None]
        low, high = self._interval(difference)
        return float(difference.mean()), float(low[0]), float(high[0])

    def task_gain(self, step: int, task: int) -> tuple[float, float, float]:
        """`gain` of one task of a finite family, over its replicates."""
        difference = self._improvement(step)[task]
        low, high = bootstrap(difference, self._rng())
        return float(difference.mean()), float(low), float(high)

    def _improvement(self, step: int) -> Array:
        """[T, R]."""
        first, last = self.values[0], self.values[step]
        better: Array = last - first if self.higher_is_better else first - last
        return better

    def to_json(self) -> dict[str, Any]:
        """The schema of `adaptation.json`."""
        num_tasks, num_replicates = self.values.shape[1:]
        flat = self.values.reshape(len(self.values), -1)
        low, high = self.interval()
        gains = [self.gain(step) for step in range(len(self.values))]
        plain: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "unit": self.unit,
            "score": self.score,
            "higher_is_better": self.higher_is_better,
            "splits": self.splits,
            "steps": list(range(len(self.values))),
            "env_steps": list(self.env_steps),
            "mean": self.mean.tolist(),
            "iqm": interquartile_mean(flat).tolist(),
            "worst_decile": worst_decile(flat, higher_is_better=self.higher_is_better).tolist(),
            "ci_low": low.tolist(),
            "ci_high": high.tolist(),
            "gain": {name: [gain[i] for gain in gains] for i, name in enumerate(("mean", "ci_low", "ci_high"))},
            "per_task": self.values.mean(2).tolist(),
            "tasks": [one_line(task) for task in self.tasks],
            "num_tasks": num_tasks,
            "num_replicates": num_replicates,
            "resampling": "replicates within task" if num_replicates > 1 else "tasks",
        }
        if self.success is not None:
            low, high = self._interval(self.success)
            plain["success"] = self.success.mean((1, 2)).tolist()
            plain["success_ci_low"], plain["success_ci_high"] = low.tolist(), high.tolist()
        if num_replicates > 1:
            low, high = bootstrap(self.values, self._rng())
            task_gains = [[self.task_gain(step, task) for task in range(num_tasks)] for step in range(len(self.values))]
            plain["per_task_ci_low"], plain["per_task_ci_high"] = low.tolist(), high.tolist()
            plain["per_task_gain"] = {
                name: [[gain[i] for gain in row] for row in task_gains]
                for i, name in enumerate(("mean", "ci_low", "ci_high"))
            }
            last = self.values[-1].mean(1)
            plain["worst_task"] = one_line(self.tasks[int(last.argmin() if self.higher_is_better else last.argmax())])
        return plain

    def _interval(self, values: Array) -> tuple[Array, Array]:
        if values.shape[2] > 1:
            return stratified_bootstrap(values, self._rng())
        return bootstrap(values[:, :, 0], self._rng())

    def _rng(self) -> np.random.Generator:
        return generator(self.seed, 0, Purpose.BOOTSTRAP)


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
        scores.append(_curve(done.scores))
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


def adaptation_controls(
    learner: Learner[Any, Any, Any],
    collector: Collector[Any, Any],
    tasks: Sequence[Any],
    *,
    num_replicates: int = 20,
    num_steps: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Did the learner use the task's data, or did one more step help anywhere?

    The cross-adaptation matrix adapts on task i's support and scores on task j's query: a learner that uses its data is
    best on the diagonal. The zero-reward control adapts on support without signal: what it gains, no data explains.
    "Before" is the score without adaptation. All entries of a column share their query's random numbers, so that two
    entries differ only by what the learner adapted to.

    Args:
        learner: any learner.
        collector: brings its data.
        tasks: T distinct tasks.
        num_replicates: R.
        num_steps: adaptation steps; None for the learner's own number.
        seed: of evaluation.

    Returns:
        JSON-ready: `tasks`, `num_adaptation_steps`, `num_replicates`, `matrix` [T][T] (row: adapted on, column: scored
        on), `matrix_ci_low`, `matrix_ci_high`, and per task `before` and `zero_reward`.
    """
    require_tasks(tasks)
    count, total = len(tasks), len(tasks) * num_replicates
    num_steps = learner.num_adaptation_steps if num_steps is None else num_steps
    adapted_on = [task for task in tasks for _ in range(num_replicates)]
    seeds = Seeds(seed, CONTROLS_ITERATION, tuple(range(total)), evaluation=True)
    episodes = run_episodes(learner, collector, adapted_on, seeds, num_steps=num_steps)
    silent = run_episodes(
        learner, collector, adapted_on, seeds, num_steps=num_steps, transform_support=lambda data: data.without_signal()
    )
    before = run_episodes(learner, collector, adapted_on, seeds, num_steps=0)

    def by_task(scores: Tensor) -> Array:
        last: Array = _curve((scores,))[-1].reshape(count, num_replicates)
        return last

    matrix = np.empty((count, count, num_replicates))
    for shift in range(count):
        order = [(i + shift * num_replicates) % total for i in range(total)]
        query = collector.query([adapted_on[i] for i in order], learner, episodes.state, seeds.take(order))
        rows = by_task(learner.score(episodes.state, learner.prepare(query)))
        for i in range(count):
            matrix[i, (i + shift) % count] = rows[i]
    low, high = bootstrap(matrix, generator(seed, 0, Purpose.BOOTSTRAP))
    return {
        "tasks": [one_line(task) for task in tasks],
        "num_adaptation_steps": num_steps,
        "num_replicates": num_replicates,
        "matrix": matrix.mean(2).tolist(),
        "matrix_ci_low": low.tolist(),
        "matrix_ci_high": high.tolist(),
        "before": by_task(before.scores[-1]).mean(1).tolist(),
        "zero_reward": by_task(silent.scores[-1]).mean(1).tolist(),
    }


def _curve(scores: Sequence[Tensor]) -> Array:
    """[K + 1, tasks]: one row per state; of a learner that scores every unit of one pass, one row per unit."""
    last = scores[-1].detach().cpu().double()
    rows = last.T if last.dim() == 2 else torch.stack([score.detach().cpu().double() for score in scores])
    array: Array = rows.numpy()
    return array
