"""`metarl train`."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from metarl.cli.console import complain, say
from metarl.cli.stopping import Stopped, StopSignals
from metarl.cli.waiting import reporting
from metarl.core.errors import require
from metarl.core.files import shown
from metarl.report.text import report_lines
from metarl.runs import registry
from metarl.runs.config import resume_command

if TYPE_CHECKING:
    from metarl.cli.flags import TrainArguments


def train(arguments: Sequence[str], signals: StopSignals) -> int:
    """Meta-trains an agent; the flags are those of `metarl.cli.flags.parse_train`."""
    from metarl.cli.flags import parse_train

    start = Path.cwd()  # the user's modules and environments may change it
    parsed = parse_train(arguments)
    alone = parsed.resume is None or parsed.run_dir is None
    require(alone, "--run-dir", str(parsed.run_dir), "left out with --resume: a run goes on in its own folder")

    # Imported late: torch and matplotlib take seconds, and `--help` or a wrong flag should not wait for them.
    from metarl.core.evaluation import coverage
    from metarl.runs.folder import new_run_dir
    from metarl.testing.tasks import check_before_training

    config = parsed.config
    if config.task_name not in registry.TASKS:  # built-in families are tested
        with contextlib.nullcontext(None) if parsed.quiet else reporting(f"checking {config.task_name}") as on_call:
            check_before_training(config.task, timeout=config.trainer.environment_timeout, on_call=on_call)
    if config.trainer.num_threads > (os.cpu_count() or 1) and not parsed.quiet:
        cores = f"this machine has {os.cpu_count()} cores; more threads than cores make nothing faster"
        complain(f"note: trainer.num_threads = {config.trainer.num_threads}: {cores}")
    count, reason = coverage(config.task, config.evaluation.num_tasks)
    if count > config.evaluation.num_tasks and not parsed.quiet:
        complain(f"note: evaluation.num_tasks = {config.evaluation.num_tasks}: {reason}")
    given = parsed.resume or parsed.run_dir
    with new_run_dir(config, start) if given is None else contextlib.nullcontext(start / given) as run_dir:
        return _train_in(run_dir, parsed, signals)


def _train_in(run_dir: Path, parsed: TrainArguments, signals: StopSignals) -> int:
    from metarl.cli.progress import ProgressCallback, StopOnSignal
    from metarl.core.trainer import Callback, Trainer
    from metarl.runs.checkpoint import list_checkpoints
    from metarl.runs.device import select_device
    from metarl.runs.train import train

    config = parsed.config
    console = Console(highlight=False, soft_wrap=True)
    stopping = StopOnSignal(signals)

    class Announce(Callback):
        """Prints the run folder when training starts, which is after the data, agent and tasks were checked."""

        def on_start(self, trainer: Trainer) -> None:
            for note in trainer.space_notes or ():
                complain(f"note: {note}")
            say(f"run folder: {shown(run_dir)}")
            say(f"watch it: tensorboard --logdir {shlex.quote(str(shown(run_dir)))}")

    callbacks: tuple[Callback, ...] = (stopping,)
    if not parsed.quiet:
        device = select_device(config.trainer.device)
        preset = f" (preset {config.preset})" if config.preset else ""
        what = f"{config.agent_name} on {config.task_name}{preset}"
        say(f"{what}, seed {config.trainer.seed}, device {device}")
        callbacks = (stopping, Announce(), ProgressCallback(console))
    report = None
    with contextlib.suppress(Stopped):
        report = train(config, run_dir, resume=parsed.resume is not None, callbacks=callbacks)
    if report is None:
        saved = bool(list_checkpoints(run_dir))
        how = f"{resume_command(run_dir)} goes on" if saved else "no iteration was finished"
        complain(f"stopped; {how}")
        return 128 + (signals.received or 0)
    if not parsed.quiet:
        for line in report_lines(report):
            say(line)
        say(f"picture: {shown(run_dir) / 'adaptation.png'}")
        if (run_dir / "paths.png").is_file():
            say(f"picture of trajectories: {shown(run_dir) / 'paths.png'}")
        say(f"TensorBoard: tensorboard --logdir {shlex.quote(str(shown(run_dir)))}")
    return 0
