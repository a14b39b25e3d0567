"""The adaptation curve: the score on test tasks after each step, with intervals.

Shape legend: K num_steps, T distinct tasks, R replicates of each task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metarl.core.errors import one_line
from metarl.core.learner import ScoreName, Unit
from metarl.core.schema import Report
from metarl.core.seeds import Purpose, generator
from metarl.core.statistics import Array, bootstrap, interquartile_mean, stratified_bootstrap, worst_decile

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class AdaptationCurve:
    """Score on test tasks after 0, 1, ..., K units of experience.

    Attributes:
        unit: what one step consumes.
        score: what is measured.
        tasks: the T tasks.
        values: [K + 1, T, R]. A finite family has R > 1 replicates of each of its tasks; otherwise R is 1.
        env_steps: [K + 1], environment steps (or examples) spent on one task before each point, on average.
        splits: `TaskDistribution.splits`.
        seed: of the resampling.
        success: [K + 1, T, R], fraction of successful trajectories; None if the environments do not report success.
    """

    unit: Unit
    score: ScoreName
    tasks: tuple[object, ...]
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
        """How much better the score after `step` is than before adaptation, paired by task: mean, low, high.

        Positive is better: for a score that is better when lower, the gain is the score before minus the score after.
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

    def to_json(self) -> Report:
        """The content of `adaptation.json` for this curve."""
        num_tasks, num_replicates = self.values.shape[1:]
        flat = self.values.reshape(len(self.values), -1)
        low, high = self.interval()
        gains, gains_low, gains_high = zip(*(self.gain(step) for step in range(len(self.values))), strict=True)
        plain: Report = {
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
            "gain": {"mean": list(gains), "ci_low": list(gains_low), "ci_high": list(gains_high)},
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
            means, lows, highs = ([[gain[i] for gain in row] for row in task_gains] for i in range(3))
            plain["per_task_gain"] = {"mean": means, "ci_low": lows, "ci_high": highs}
            last = self.values[-1].mean(1)
            plain["worst_task"] = one_line(self.tasks[int(last.argmin() if self.higher_is_better else last.argmax())])
        return plain

    def _interval(self, values: Array) -> tuple[Array, Array]:
        if values.shape[2] > 1:
            return stratified_bootstrap(values, self._rng())
        return bootstrap(values[:, :, 0], self._rng())

    def _rng(self) -> np.random.Generator:
        return generator(self.seed, 0, Purpose.BOOTSTRAP)
