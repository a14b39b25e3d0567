"""The report of an evaluation, and the files of a run folder that hold reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from metarl.core.controls import adaptation_controls
from metarl.core.curve import AdaptationCurve
from metarl.core.errors import require
from metarl.core.files import read_json_object, write_atomically, writing
from metarl.core.schema import Baseline, Report, Routes
from metarl.core.step_scale import choose_step_scale
from metarl.core.trainer import Trainer
from metarl.fewshot.base.baseline import evaluate_baseline
from metarl.fewshot.base.examples import ExampleTaskDistribution
from metarl.fewshot.base.learner import FewShotLearner
from metarl.report import plots

MAX_CONTROL_TASKS = 5


def choose_step_size(trainer: Trainer) -> tuple[float, dict[str, float]]:
    """Chooses the size of the test-time steps on validation tasks; `trainer` gets the learner with that size.

    Returns:
        The chosen factor on the learner's own step size, and the mean score with each factor that was tried.

    Raises:
        InputError: the learner has no step size.
    """
    learner, settings = trainer.learner, trainer.evaluation
    steps = settings.num_adaptation_steps
    fits = learner.traits.step_size_can_scale and steps > 0
    require(fits, "--choose-step-size", "given", "for RL agents that take gradient steps, and for some steps")
    collector = trainer.evaluation_collector or trainer.collector
    trainer.learner, scores = choose_step_scale(
        learner,
        collector,
        trainer.distribution,
        num_tasks=settings.num_tasks,
        num_steps=steps,
        seed=trainer.config.seed,
        batch_size=trainer.config.meta_batch_size,
    )
    best = max(scores, key=lambda factor: scores[factor])
    return best, {str(factor): score for factor, score in scores.items()}


def describe(trainer: Trainer, curve: AdaptationCurve, *, controls: bool) -> Report:
    """The report of `curve`, with the controls on up to five test tasks and, for few-shot tasks, the baseline."""
    report = curve.to_json()
    report["settings"] = {**trainer.learner.settings} if isinstance(trainer.learner, FewShotLearner) else {}
    if isinstance(trainer.distribution, ExampleTaskDistribution):
        report["protocol"] = trainer.distribution.caption
        baseline = evaluate_baseline(trainer.distribution, curve.tasks, seed=trainer.config.seed)
        if baseline is not None:
            report["baseline"] = cast(Baseline, baseline._asdict())
    if controls and trainer.learner.num_adaptation_steps > 0:
        tasks = list(curve.tasks)[:MAX_CONTROL_TASKS]
        report["cross_adaptation"] = adaptation_controls(
            trainer.learner,
            trainer.evaluation_collector or trainer.collector,
            tasks,
            num_replicates=max(1, trainer.evaluation.num_tasks // len(tasks)),
            seed=trainer.config.seed,
        )
    return report


def write_report(report: Report, run_dir: Path) -> None:
    """Writes `adaptation.json` and `adaptation.png`."""
    write_json(report, run_dir / "adaptation.json")
    plots.save_figure(plots.adaptation_figure(report), run_dir / "adaptation.png")


def write_routes(routes: Routes, run_dir: Path) -> None:
    """Writes `paths.json` and `paths.png`."""
    write_json(routes, run_dir / "paths.json", indent=None)
    plots.save_figure(plots.routes_figure(routes), run_dir / "paths.png")


def read_report(run_dir: Path) -> Report:
    """The content of `adaptation.json`.

    Raises:
        InputError: missing or damaged. What the file holds is not checked.
    """
    return cast(Report, read_json_object(run_dir / "adaptation.json", content="report"))


def read_routes(run_dir: Path) -> Routes:
    """The content of `paths.json`; raises the same errors as `read_report`."""
    return cast(Routes, read_json_object(run_dir / "paths.json", content="report"))


def write_json(value: Mapping[str, object], path: Path, *, indent: int | None = 1) -> None:
    """Writes JSON. An interrupted write leaves the old content of `path`.

    Raises:
        InputError: `path` cannot be written.
        WriteError: the disk is full.
    """
    with writing(path):
        write_atomically(path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())
