"""Writes a run into its folder while it trains."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from metarl.core.curve import AdaptationCurve
from metarl.core.errors import InputError, RunError
from metarl.core.files import shown
from metarl.core.scalars import curve_scalars
from metarl.core.tags import CURVE_FIGURE, ROUTES_FIGURE, VALIDATION
from metarl.core.trainer import Callback, Progressed, Trainer
from metarl.report import plots
from metarl.rl.routes import routes_of, routes_to_json
from metarl.runs import checkpoint
from metarl.runs.best import best_of, evaluated_part, scores_by_iteration
from metarl.runs.config import SPACES, RunConfig, decisive_settings, flatten, to_dict
from metarl.runs.tracking import Row, Tracker, read_rows_before

_logger = logging.getLogger(__name__)


class RunRecorder(Callback):
    """Writes the configuration, metrics, TensorBoard events and checkpoints of a run.

    Checkpoints are saved every `checkpoint_every` iterations, before each evaluation, and at the end. The newest
    `keep_last` and the best one are kept. After a failed write, nothing more is written.
    """

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self._run_dir = run_dir
        self._config = config
        self._plain = to_dict(config)
        self._tracker: Tracker | None = None
        self._logged = self._saved = 0
        self._evaluated: dict[int, Row] = {}

    def on_start(self, trainer: Trainer) -> None:
        self._saved = trainer.iteration
        start = trainer.iteration + 1 if trainer.iteration else 0
        rows, wrong = read_rows_before(self._run_dir, start)
        if wrong:
            shown = "; ".join([*wrong[:3], *wrong[3:][-1:]])
            _logger.warning("%s: %s; going on", self._run_dir / "metrics.jsonl", shown)
        self._evaluated = {row["iteration"]: part for row in rows if (part := evaluated_part(row))}
        due = trainer.iteration > 0 and trainer.evaluation_follows
        trainer.evaluation_missing = due and trainer.iteration not in self._evaluated
        self._tracker = Tracker(
            self._run_dir,
            config=self._plain if trainer.space_notes is None else {**self._plain, SPACES: list(trainer.space_notes)},
            num_adaptation_steps=trainer.learner.num_adaptation_steps,
            num_evaluation_steps=trainer.evaluation.num_adaptation_steps,
            start_iteration=start,
            evaluated_again=trainer.ends or trainer.evaluation_missing,
        )

    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        iteration = progressed.iteration
        with self._recording() as tracker:
            tracker.log(iteration, progressed.scalars, env_steps=progressed.env_steps, wall_s=progressed.wall_s)
            self._logged = iteration
            if iteration % self._config.trainer.checkpoint_every == 0 or trainer.evaluation_follows:
                self._save(trainer, tracker)

    def on_evaluation(self, trainer: Trainer, curve: AdaptationCurve) -> None:
        with self._recording() as tracker:
            figure = plots.adaptation_figure(curve.to_json())
            tracker.figure(CURVE_FIGURE, figure, trainer.iteration)
            if routes := routes_of(trainer.observer):
                figure = plots.routes_figure(routes_to_json(routes, unit=curve.unit))
                tracker.figure(ROUTES_FIGURE, figure, trainer.iteration)
            validated = {} if trainer.validation is None else {VALIDATION: trainer.validation}
            scalars = curve_scalars(curve) | validated
            tracker.evaluation(trainer.iteration, scalars, env_steps=trainer.env_steps, wall_s=trainer.wall_s)
            self._evaluated[trainer.iteration] = evaluated_part({"iteration": trainer.iteration, **scalars})
            if self._saved == trainer.iteration:
                self._prune(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if self._tracker is None:
            return
        with self._recording() as tracker:
            if self._saved < self._logged == trainer.iteration:  # an interrupted iteration is repeated, not saved
                self._save(trainer, tracker)
            if trainer.curve is not None:
                # With tags of their own: `on_evaluation` has recorded the last point of the test curves.
                scalars = curve_scalars(trainer.curve)
                scores = {tag: value for tag, value in scalars.items() if tag.startswith("meta_test/")}
                results = {tag.replace("meta_test", "hparam"): value for tag, value in scores.items()}
                tracker.hparams(flatten(self._plain), results)
            tracker.close()

    @contextlib.contextmanager
    def _recording(self) -> Iterator[Tracker]:
        assert self._tracker is not None
        tracker = self._tracker
        try:
            yield tracker
        except (InputError, RunError):
            self._tracker = None
            tracker.close()
            raise

    def _save(self, trainer: Trainer, tracker: Tracker) -> None:
        if not self._run_dir.is_dir():  # a new folder would have checkpoints and no settings
            raise RunError(f"{shown(self._run_dir)}: was moved or deleted while the run wrote to it")
        tracker.sync()  # rows first: a checkpoint must not lack the rows of its iterations
        checkpoint.save(
            self._run_dir,
            trainer.iteration,
            state=trainer.learner.state_dict(),
            parameters=trainer.learner.parameters,
            config=decisive_settings(self._config),
            extra={"env_steps": trainer.env_steps, "wall_s": trainer.wall_s},
        )
        self._saved = trainer.iteration
        self._prune(trainer)

    def _prune(self, trainer: Trainer) -> None:
        scores = scores_by_iteration([*self._evaluated.values()], trainer.learner)
        best = best_of(scores, checkpoint.list_checkpoints(self._run_dir))
        checkpoint.prune(self._run_dir, self._config.trainer.keep_last, newest=trainer.iteration, keep=[best])
