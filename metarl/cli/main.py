"""The command line: `metarl train | evaluate | plot | video | list | check-tasks | check-agent`.

Exit codes:
    0: done.
    1: another error. It is one line; for errors in a user's code and unforeseen errors, a traceback comes first.
       Also: standard output could not be written. A run is still finished and kept.
    2: bad input, in one line on standard error.
    130, 143, 129: stopped by SIGINT, SIGTERM or SIGHUP. Training first finishes and saves its iteration; a second
       signal stops it at once. All other commands stop at once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from metarl.cli.console import complain, lasting_streams, say
from metarl.cli.endings import code_after
from metarl.cli.waiting import drawing, telling
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.errors import InputError, require, unknown_name
from metarl.core.files import beginning_here, require_output, shown
from metarl.core.settings import from_table
from metarl.core.stopping import Stopped, StopSignals
from metarl.report.text import report_lines
from metarl.runs import registry
from metarl.runs.config import load_config, path_settings, read_saved, resume_command

if TYPE_CHECKING:
    from metarl.cli.flags import TrainArguments


EPILOG = """commands:
  train TASKS            meta-train an agent on a task family
  evaluate RUN_DIR       adaptation curve of a trained run on test tasks
  plot RUN_DIR ...       draw the curves of one or more runs
  video RUN_DIR          film a trained run's agent before and after adaptation
  list                   task families, agents, learners and presets
  check-tasks MOD:CLASS  check a task distribution of your own
  check-agent MOD:CLASS  check an RL agent or few-shot learner of your own

examples:
  metarl train point-nav --preset quick
  metarl train half-cheetah-dir --preset quick --seed 1 --agent.inner-lr 0.05
  metarl evaluate runs/point-nav --tasks 40 --adaptation-steps 3
  metarl evaluate runs/half-cheetah-dir --on half-cheetah-vel --task.low 1 --task.high 2
  metarl video runs/half-cheetah-dir --out film.webp
  metarl list --json

`metarl COMMAND --help` lists every flag."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with lasting_streams() as (out, _):
        code = _run(arguments)
        out.flush()
        if out.lost is None:
            return code
        if out.lost.errno != errno.EPIPE:  # EPIPE: the reader has closed the pipe, such as `| head`; no message
            complain(f"standard output cannot be written: {out.lost.strerror}; the rest of the output is lost")
        return code or 1


def _run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code. An error becomes a message on standard error."""
    try:
        Path.cwd()  # raises if it was deleted; otherwise MKL would end the process with its own message
        with StopSignals() as signals, beginning_here():
            return _dispatch(arguments, signals)
    except BaseException as error:
        return code_after(error, helped={"-h", "--help"} & {*arguments} != set())


def _dispatch(arguments: list[str], signals: StopSignals) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: metarl COMMAND ...\n\n{EPILOG}")
        return 0 if arguments else 2
    from metarl.cli.flags import refuse_blank

    refuse_blank(arguments)
    name, rest = arguments[0], arguments[1:]
    commands: dict[str, Callable[..., int]] = {
        "evaluate": evaluate,
        "plot": plot,
        "video": video,
        "list": list_names,
        "check-tasks": check_tasks,
        "check-agent": check_agent,
    }
    if name == "train":
        return train(rest, signals)
    if name not in commands:
        raise unknown_name("command", name, ["train", *commands])
    if name != "evaluate":
        return _parsed(commands[name], rest, prog=f"metarl {name}")()
    from metarl.cli.flags import split_task_flags

    rest, task_flags = split_task_flags(rest)
    return _parsed(evaluate, rest, prog="metarl evaluate")(task_flags=tuple(task_flags))


def _parsed(command: Callable[..., int], arguments: list[str], *, prog: str) -> Callable[..., int]:
    """`command` with its arguments, not yet run: only what tyro says is put into one line."""
    from metarl.cli.flags import errors_in_one_line

    @functools.wraps(command)
    def bind(*values: Any, **settings: Any) -> Callable[[], int]:
        return functools.partial(command, *values, **settings)

    with errors_in_one_line(prog):
        return tyro.cli(bind, args=arguments, prog=prog)


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
    if config.task_name not in registry.TASKS:  # those are tested
        with contextlib.nullcontext(None) if parsed.quiet else telling(f"checking {config.task_name}") as on_call:
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
        """Names the folder once there is something to train: data is there, and agent and tasks fit."""

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


def evaluate(
    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")],
    tasks: int | None = None,
    adaptation_steps: int | None = None,
    seed: int | None = None,
    checkpoint: str = "latest",
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    on: str | None = None,
    choose_step_size: bool = False,
    trust: bool = False,
    task_flags: Annotated[tuple[str, ...], tyro.conf.Suppress, tyro.conf.Fixed] = (),
) -> int:
    """Adaptation curve of a trained run on test tasks.

    --task.NAME VALUE, after RUN_DIR, gives the evaluated family's setting NAME another value: such as --task.test-low 2
    --task.test-high 3 for goals held out of training. `metarl train FAMILY --help` lists the settings.

    Args:
        run_dir: a folder that `metarl train` filled.
        tasks: episodes in all; None = the run's setting. A finite family is covered with replicates.
        adaptation_steps: last step of the curve; None = the run's setting.
        seed: of evaluation's tasks and random numbers; None = the run's.
        checkpoint: latest, best (by the score on validation tasks, see --evaluation.every), or an iteration.
        json_file: also write the result there, in the schema of adaptation.json.
        on: another family to evaluate on, with the same observations and actions, or images and classes. Horizon,
            action range, ways and shots are the run's; other settings are the family's.
        choose_step_size: first choose the size of the test-time steps on validation tasks, from 1/4 to 8 times the
            run's: as many tasks, of the training split.
        trust: import the task or agent class that the folder, or `on`, names as module:Class.
        task_flags: what --task.* flags there were.
    """
    settings = {"num_tasks": tasks, "num_adaptation_steps": adaptation_steps}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    # Before torch is imported, and before minutes of evaluation whose result could not be written.
    EvaluationConfig(**given)
    TrainerConfig(seed=0 if seed is None else seed)
    read_saved(run_dir)
    run_dir = run_dir.absolute()  # the user's modules and environments may change the working directory
    if json_file is not None:
        require_output(json_file, "--json")
        json_file = json_file.absolute()

    from metarl.cli.flags import parse_task_flags, task_values
    from metarl.core.evaluation import coverage
    from metarl.runs import reports
    from metarl.runs.load import load_trainer
    from metarl.runs.other_tasks import Target, describe_transfer, target_family

    values = {} if on is not None else task_values(task_flags)  # with `on`, they belong to another family
    target, saved = None, load_config(run_dir, trusted=trust, paths=values)
    paths = {name: value for name, value in values.items() if name in path_settings(type(saved.task))}
    if on is not None or task_flags:
        family = target_family(saved, on, trusted=trust)
        task = parse_task_flags(family.task, task_flags)
        moved = on is None and values == paths  # the data was only moved
        target = None if moved else Target(family.name, task)
    trainer = load_trainer(run_dir, checkpoint=checkpoint, trusted=trust, seed=seed, on=target, paths=paths, **given)
    if tasks is not None:
        reason = coverage(trainer.distribution, tasks)[1]
        if reason:
            complain(f"note: --tasks = {tasks}: {reason}")
    scales = reports.choose_step_size(trainer) if choose_step_size else {}
    report = reports.describe(trainer, trainer.evaluate(), controls=trainer.evaluation.controls) | scales
    if target is not None:
        report = describe_transfer(report, saved, target)
    for line in report_lines(report):
        say(line)
    if json_file is not None:
        reports.write_json(report, json_file)
    return 0


def plot(run_dirs: tyro.conf.Positional[tuple[Path, ...]], out: Path) -> int:
    """Draws one run's adaptation curve, or several runs' learning curves.

    Of one run whose tasks can be seen from above (mazes, navigation), the agent's ways before and after adaptation are
    drawn too, into a second picture beside the first: with `--out FILE.png` into FILE.paths.png.

    Args:
        run_dirs: folders that `metarl train` filled.
        out: the picture, .png, .pdf or .svg.
    """
    if not run_dirs:
        raise InputError("run_dirs = (): must be one run folder or more")
    for run_dir in run_dirs:
        if not (run_dir / "metrics.jsonl").is_file() and not (run_dir / "adaptation.json").is_file():
            read_saved(run_dir)  # says what the folder is instead

    from metarl.runs.pictures import draw

    for path in draw(run_dirs, out):
        say(path)
    return 0


def video(
    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")],
    out: Path,
    tasks: int = 2,
    adaptation_steps: int | None = None,
    seed: int | None = None,
    checkpoint: str = "latest",
    size: tuple[int, int] = (320, 240),
    stride: int = 1,
    fps: float | None = None,
    side_view: float | None = None,
    trust: bool = False,
) -> int:
    """Films a trained run's agent on test tasks before and after adaptation. MuJoCo families only.

    Without a display, set MUJOCO_GL=egl or MUJOCO_GL=osmesa.

    Args:
        run_dir: a folder that `metarl train` filled.
        out: the film, .mp4 (extra `video`), .gif or .webp.
        tasks: side by side, up to 8; a finite family has no more than it has.
        adaptation_steps: of the second row of pictures; None = as many as in training.
        seed: of the tasks and random numbers; None = the run's.
        checkpoint: latest, best (by the score on validation tasks, see --evaluation.every), or an iteration.
        size: width and height of one picture, in pixels.
        stride: environment steps from frame to frame.
        fps: frames per second; None = simulated time.
        side_view: metres between the start and a camera that stands still; None = the family's own camera.
        trust: import the task or agent class that the folder names as module:Class.
    """
    from metarl.report import film as films

    films.check_path(out)
    run_dir, out = run_dir.absolute(), out.absolute()  # the user's code may change the working directory
    settings = films.FilmSettings(tasks, adaptation_steps, size, stride, fps, side_view)
    TrainerConfig(seed=0 if seed is None else seed)
    read_saved(run_dir)

    from metarl.runs.load import load_trainer

    trainer = load_trainer(run_dir, checkpoint=checkpoint, trusted=trust, seed=seed)
    with drawing() as on_frame:
        film = films.make_film(trainer, settings, on_frame=on_frame)
    films.save_film(film, out)
    filmed = len(film.panels[0])
    if filmed < tasks:
        complain(f"note: --tasks = {tasks}: the family has {filmed} test tasks; all are filmed")
    for row in film.panels:
        for panel in row:
            say(panel.caption.replace("\n", ", "))
    say(f"{shown(out)}: {film.num_frames} frames, {film.fps:g} a second")
    return 0


def list_names(json_output: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """Task families, agents, few-shot learners and presets.

    Args:
        json_output: as one JSON object.
    """
    entries = registry.entries()
    if json_output:
        print(json.dumps(entries, indent=1))
        return 0
    for kind, rows in entries.items():
        if rows:
            say(f"{kind}:")
        for row in rows:
            say(f"  {row['name']:<20} {row.get('error') or row['summary']}")
            for agent, presets in row.get("presets", {}).items():
                say(f"  {'':<20} presets for {agent}: {', '.join(presets)}")
    return 0


def check_tasks(name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MOD:CLASS")]) -> int:
    """Checks a task distribution. Prints one line for each fault and one for each note.

    Args:
        name: a registered task family, or module:Class of your own.
    """
    distribution = from_table(registry.load_task(name), {}, "task")

    from metarl.testing.tasks import check_task_distribution

    notes: list[str] = []
    with telling(f"checking {name}") as on_call:
        problems = check_task_distribution(distribution, on_call=on_call, on_note=notes.append)
    for line in (*problems, *(f"note: {note}" for note in notes)):
        say(f"{name}: {line}")
    if not problems:
        say(f"{name}: fine")
    return 2 if problems else 0


def check_agent(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MOD:CLASS")], task: str | None = None
) -> int:
    """Checks an RL agent or few-shot learner on small tasks. Prints one line for each fault.

    If a registered name has both, such as maml, both are checked.

    Args:
        name: a registered agent or learner, or module:Class of your own.
        task: a registered task family, or module:Class of your own, to check it on; None = small built-in ones.
    """
    family = None if task is None else registry.load_task(task)
    kinds = registry.load_unchecked(name, family)

    from metarl.testing import tasks as testing

    tasks = None if family is None or task is None else {task: from_table(family, {}, "task")}
    problems = [problem for kind in kinds for problem in testing.check_agent(kind, tasks=tasks)]
    for problem in problems:
        say(f"{name}: {problem}")
    if not problems:
        say(f"{name}: fine")
    return 2 if problems else 0
