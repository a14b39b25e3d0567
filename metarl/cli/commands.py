"""The shorter commands: `metarl plot | video | list | check-tasks | check-agent`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from metarl.cli.console import complain, say
from metarl.cli.waiting import drawing, reporting
from metarl.core.config import TrainerConfig
from metarl.core.errors import InputError
from metarl.core.files import shown
from metarl.core.settings import from_table
from metarl.runs import registry
from metarl.runs.config import read_saved


def plot(run_dirs: tyro.conf.Positional[tuple[Path, ...]], out: Path) -> int:
    """Draws one run's adaptation curve, or several runs' learning curves.

    If the tasks of one run can be seen from above (mazes, navigation), a second picture shows the agent's routes before
    and after adaptation. With `--out FILE.png` it is FILE.paths.png.

    Args:
        run_dirs: folders that `metarl train` filled.
        out: the picture, .png, .pdf or .svg.
    """
    if not run_dirs:
        raise InputError("run_dirs = (): must be one run folder or more")
    for run_dir in run_dirs:
        if not (run_dir / "metrics.jsonl").is_file() and not (run_dir / "adaptation.json").is_file():
            read_saved(run_dir)  # raises an error that describes the folder

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
        tasks: number of tasks, side by side, 1 to 8, and at most the tasks of a finite family.
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
    """Lists task families, agents, few-shot learners and presets.

    Args:
        json_output: print one JSON object.
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
    with reporting(f"checking {name}") as on_call:
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

    If a name is both an agent and a learner, such as maml, both are checked.

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
