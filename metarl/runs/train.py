"""Trains a run in its folder."""

from __future__ import annotations

from pathlib import Path

from metarl.core.errors import InputError, require
from metarl.core.files import WriteError, shown
from metarl.core.schema import Report
from metarl.core.trainer import Callback
from metarl.rl.routes import routes_of, routes_to_json
from metarl.runs import checkpoint
from metarl.runs.build import build
from metarl.runs.config import RunConfig, decisive_settings, flatten, read_saved, resume_command
from metarl.runs.folder import claimed, what_is_left
from metarl.runs.load import restore
from metarl.runs.recorder import RunRecorder
from metarl.runs.reports import describe, write_report, write_routes


def train(
    config: RunConfig, run_dir: Path, *, resume: bool = False, callbacks: tuple[Callback, ...] = ()
) -> Report | None:
    """Trains, evaluates and writes the results into `run_dir`, which is locked meanwhile.

    Args:
        config: the run.
        run_dir: its folder, made if it does not exist.
        resume: continue from the newest valid checkpoint in `run_dir`.
        callbacks: called before the recorder, which also writes the scalars that they add.

    Returns:
        The content of `adaptation.json`; None if the run was stopped before its evaluation.

    Raises:
        InputError: as `build` and `restore`; or the folder cannot be made, is in use, or holds a run although
            `resume` is false, or a run with other settings.
        WriteError: the disk is full. The message names the checkpoint from which the run can be resumed.
    """
    run_dir = run_dir.absolute()  # an environment may change the working directory
    with claimed(run_dir):
        if resume:
            _require_same_run(config, run_dir)
        elif checkpoint.list_checkpoints(run_dir):
            how = f"go on with {resume_command(run_dir)}, or name another folder"
            raise InputError(f"run_dir = {str(shown(run_dir))!r}: holds a trained run; {how}")
        trainer = build(config)
        if resume:
            restore(trainer, run_dir, config=config)
        trainer.callbacks = (*callbacks, RunRecorder(run_dir, config))
        trainer.nonfinite_dir = run_dir / "nonfinite"
        try:
            curve = trainer.run()
            if curve is None:
                return None
            for callback in trainer.callbacks:
                callback.before_evaluation(trainer)
            report = describe(trainer, curve, controls=config.evaluation.controls)
            write_report(report, run_dir)
            if routes := routes_of(trainer.observer):
                write_routes(routes_to_json(routes, unit=curve.unit), run_dir)
        except WriteError as error:
            raise WriteError(f"{error}; {what_is_left(run_dir)}") from None
        return report


def _require_same_run(config: RunConfig, run_dir: Path) -> None:
    saved = flatten(read_saved(run_dir))
    for setting, value in decisive_settings(config).items():
        if setting in saved:
            allowed = f"{saved[setting]!r}, as in the run {shown(run_dir)}: its results depend on it"
            require(value == saved[setting], setting, value, allowed)
