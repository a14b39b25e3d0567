"""Callbacks of `metarl train`: they show progress and handle signals."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from metarl.cli.stopping import StopSignals
from metarl.core.curve import AdaptationCurve
from metarl.core.tags import POST_ADAPT, PRE_ADAPT
from metarl.core.trainer import Callback, Progressed, Trainer
from metarl.report.text import endpoints


class ProgressCallback(Callback):
    """A progress bar with an ETA on a terminal, one plain line per iteration elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: Any = None
        self._first, self._before = 0, 0.0

    def on_start(self, trainer: Trainer) -> None:
        self._first, self._before = trainer.iteration, trainer.wall_s
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("iteration"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[scores]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=trainer.config.iterations, scores="", completed=trainer.iteration)
            self._bar.start()

    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        name = trainer.learner.score_name
        points = zip(endpoints(trainer.learner.traits.unit), (PRE_ADAPT, POST_ADAPT), strict=True)
        known = [f"{when} {progressed.scalars[tag]:.4g}" for when, tag in points if tag in progressed.scalars]
        jointly = progressed.scalars.get(f"train/{name}")
        if jointly is not None:
            known.append(f"in joint training {jointly:.4g}")
        scores = f"{name} {', '.join(known)}" if known else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=progressed.iteration, scores=scores)
            return
        elapsed = progressed.wall_s - self._before
        pace = elapsed / (progressed.iteration - self._first)
        remaining = pace * (trainer.config.iterations - progressed.iteration)
        if trainer.config.max_minutes is not None:
            remaining = min(remaining, max(0.0, 60.0 * trainer.config.max_minutes - elapsed))
        self._console.print(
            f"iteration {progressed.iteration}/{trainer.config.iterations}  {scores}  "
            f"{progressed.wall_s:.0f} s  eta {remaining:.0f} s",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def on_end(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class StopOnSignal(Callback):
    """SIGINT, SIGTERM or SIGHUP ends the run after this iteration, without an evaluation. A second one ends it now.

    During an evaluation, the first one raises `metarl.cli.stopping.Stopped`.

    Args:
        signals: an entered `StopSignals`; None = catch signals between `on_start` and `on_end`.
    """

    def __init__(self, signals: StopSignals | None = None) -> None:
        self._signals = StopSignals() if signals is None else signals
        self._own = signals is None

    @property
    def received(self) -> int | None:
        """The signal's number, or None."""
        return self._signals.received

    def on_start(self, trainer: Trainer) -> None:
        if self._own:
            self._signals.__enter__()
        self._finish_first(trainer)

    def before_evaluation(self, trainer: Trainer) -> None:
        self._signals.stop_at_once()

    def on_evaluation(self, trainer: Trainer, curve: AdaptationCurve) -> None:
        self._finish_first(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if self._own:
            self._signals.__exit__(None, None, None)

    def _finish_first(self, trainer: Trainer) -> None:
        self._signals.finish_first(lambda: trainer.stop(evaluate=False))
