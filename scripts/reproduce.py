"""Trains and measures any cell of the results table, and builds the README's tables from what was measured.

    python scripts/reproduce.py half-cheetah-dir --agents maml rl2 --seeds 0 1 2
    python scripts/reproduce.py --list                    # the tables, with the cells that were not run
    python scripts/reproduce.py --readme                  # writes the tables into README.md, and the pictures
    python scripts/reproduce.py --figure                  # Figure 1 and the film; trains what they lack, an hour or two

A cell is a family, an agent and a seed. It is trained for 4 million environment steps (`--steps`), or for 45 minutes
(`--minutes`) if that is less. `--full` takes five times as many steps and has no time limit. The run folder lies in
`--runs`; an interrupted run is resumed. The measurements go to results/cells/FAMILY/AGENT-seedS.json, and the tables
and figures are made from these files alone.

The column AGENT-long trains the agent for three times the steps, without a time limit. While its learning curve still
rises, it trains for one more budget of `--steps`, up to eight in all. The tables have it for the oracle.

A cell holds the return on the test tasks after learning from 0, 1, 2, 20, 40 and 60 trajectories of each task. The step
size was chosen on validation tasks.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import compare_agents
import compare_bandits
import figure_one
import matplotlib
import numpy as np
import results_table
from comparing import with_iterations
from rich.console import Console

from metarl.cli.progress import ProgressCallback, StopOnSignal
from metarl.cli.stopping import Stopped, StopSignals
from metarl.core.errors import InputError, RunError, require, unknown_name
from metarl.core.files import write_atomically
from metarl.core.tags import POST_ADAPT
from metarl.report.film import FilmSettings, make_film, save_film
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs.build import build
from metarl.runs.checkpoint import list_checkpoints
from metarl.runs.config import RunConfig, load_config, resolve
from metarl.runs.load import load, load_trainer
from metarl.runs.registry import AGENTS, presets
from metarl.runs.reports import read_report, read_routes, write_json
from metarl.runs.tracking import read_metrics
from metarl.runs.train import train

ROOT = Path(__file__).resolve().parent.parent
CELLS = ROOT / "results" / "cells"
STEPS, MINUTES, TASKS = 4_000_000, 45.0, 40  # of one cell: environment steps, minutes of training, test episodes
CURVE_POINTS = 40
MEMORIES_FILE = ROOT / "results" / "bandit-memories.json"
# Iterations and meta-batch of RL² on 100 pulls of 5 arms. The LSTM has the preset's; those of the others take 12 to 24
# minutes on about one core.
MEMORY_RUNS = {"lstm": (1500, 300), "gru": (600, 300), "transformer": (200, 75), "mann": (150, 50)}
FIGURE_CELLS = [("point-nav", "maml:paper", 2 * STEPS)]  # the paper's 100 iterations
FIGURE_CELLS += [("point-nav", column, STEPS) for column in ("pretrained", "random-init", "oracle")]
FIGURE_CELLS += [("half-cheetah-dir", column, STEPS) for column in ("maml", "pretrained", "random-init", "oracle")]
FILM = FilmSettings(size=(400, 120), side_view=6.2)
LONG, LONGEST = 3, 8  # budgets of a column AGENT-long: at first, and at most
FULL = 5  # budgets of --full


def cell_config(
    family: str, column: str, seed: int, *, steps: int = STEPS, minutes: float | None = MINUTES, threads: int = 0
) -> RunConfig:
    """The run of a cell: the agent's preset with as many iterations as `steps` environment steps allow.

    Args:
        family: task family.
        column: "AGENT", "AGENT:PRESET" or "AGENT-long".
        seed: of the run.
        steps: environment steps, counting every trajectory as long as the horizon.
        minutes: limit of training time; "AGENT-long" has none.
        threads: of the simulator.

    Raises:
        InputError: no such family, agent or preset.
    """
    name, preset = results_table.agent_of(column), column.partition(":")[2]
    if column.endswith(results_table.LONG):
        steps, minutes = LONG * steps, None
    if name not in AGENTS:
        raise unknown_name("agent", name, {*AGENTS, *results_table.all_columns()})
    config = resolve(family, name, preset=preset or None)
    require(isinstance(config.task, EnvTaskDistribution), "family", family, "a family of environments")
    trainer = dataclasses.replace(config.trainer, max_minutes=minutes, seed=seed, device="cpu", num_threads=threads)
    config = dataclasses.replace(config, trainer=trainer)
    collections = build(config).learner.num_adaptation_steps + 1
    per_iteration = trainer.meta_batch_size * config.agent.num_trajectories * collections * config.task.horizon
    untrained = trainer.iterations == 1  # set in the preset of a baseline that learns only at test time
    config = with_iterations(config, 1 if untrained else max(1, steps // per_iteration))
    evaluation = dataclasses.replace(config.evaluation, every=0)
    if not untrained:
        evaluation = dataclasses.replace(evaluation, num_adaptation_steps=results_table.TEST_STEPS)
    return dataclasses.replace(config, evaluation=evaluation)


def run_cell(config: RunConfig, run_dir: Path, *, num_tasks: int, command: str, until_flat: bool) -> dict[str, Any]:
    """Trains the run of a cell, or resumes it, and measures it."""
    saved = trained_until_flat(config, run_dir) if until_flat else trained(config, run_dir)
    cell = compare_agents.measure(run_dir, num_tasks, results_table.EVALUATION_SEED)
    rows, curve = read_metrics(run_dir), learning_curve(run_dir)
    report = read_report(run_dir)
    cell |= {
        "curve": {
            name: report[name] for name in ("unit", "env_steps", "mean", "ci_low", "ci_high", "per_task", "tasks")
        },
        "command": command,
        "preset": saved.preset,
        "minutes": round(rows[-1]["wall_s"] / 60.0, 1) if rows else 0.0,
        "learning_curve": curve[:: max(1, len(curve) // CURVE_POINTS)],
        "flat": is_flat([score for _, score in curve]),
    }
    if (run_dir / "paths.json").is_file():
        paths = read_routes(run_dir)
        few = [{**task, "ways": [ways[:1] for ways in task["ways"]]} for task in paths["tasks"]]
        cell["paths"] = {**paths, "tasks": few}
    return cell


def trained(config: RunConfig, run_dir: Path) -> RunConfig:
    """Trains in `run_dir`, or resumes the run there; a finished run stays as it is.

    Raises:
        InputError: the folder holds a run of another length.
    """
    if (run_dir / "adaptation.json").is_file():
        saved = load_config(run_dir)
        length = saved.trainer.iterations
        allowed = f"{length}, as in the run {run_dir}; name another folder with --runs"
        require(length == config.trainer.iterations, "iterations", config.trainer.iterations, allowed)
        return saved
    progress = ProgressCallback(Console(highlight=False, soft_wrap=True))
    report = None
    with StopSignals() as signals, contextlib.suppress(Stopped):
        callbacks = (StopOnSignal(signals), progress)
        report = train(config, run_dir, resume=bool(list_checkpoints(run_dir)), callbacks=callbacks)
    if report is None:
        raise SystemExit(128 + (signals.received or 0))
    return load_config(run_dir)


def trained_until_flat(config: RunConfig, run_dir: Path) -> RunConfig:
    """Trains as `trained` does, then for one more budget at a time while the curve rises, up to `LONGEST` budgets.

    Args:
        config: of a run of `LONG` budgets.
        run_dir: the run folder. It may hold this run or a longer one of an earlier call, finished or not.
    """
    budget = config.trainer.iterations // LONG
    length = config.trainer.iterations
    if list_checkpoints(run_dir):
        length = max(length, load_config(run_dir).trainer.iterations)
    while True:
        longer = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, iterations=length))
        saved = trained(longer, run_dir)
        if is_flat([score for _, score in learning_curve(run_dir)]) is not False or length >= LONGEST * budget:
            return saved
        length = min(length + budget, LONGEST * budget)
        (run_dir / "adaptation.json").unlink()  # of the shorter run; `trained` treats a run with this file as finished


def learning_curve(run_dir: Path) -> list[tuple[int, float]]:
    """Environment steps and return after adaptation of every iteration."""
    return [
        (row["env_steps"], round(row[POST_ADAPT], 3))
        for row in read_metrics(run_dir)
        if row.get(POST_ADAPT) is not None
    ]


def is_flat(scores: Sequence[float]) -> bool | None:
    """Whether the last third of a learning curve has stopped rising; None for fewer than five points.

    It has stopped if its slope is at most two standard errors above zero, or if it rises by at most a twentieth of the
    whole curve's range.
    """
    last = np.asarray(scores[-(len(scores) // 3) :], dtype=np.float64)
    if len(last) < 5:
        return None
    x = np.arange(len(last)) - (len(last) - 1) / 2.0
    slope = float(x @ last / (x @ x))
    residuals = last - last.mean() - slope * x
    error = float(np.sqrt(residuals @ residuals / (len(last) - 2) / (x @ x)))
    whole = float(np.ptp(scores))
    return slope <= 2.0 * error or slope * len(last) <= 0.05 * whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="?", help="task family")
    parser.add_argument("--agents", nargs="+", metavar="AGENT[:PRESET]", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help="environment steps of a cell")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="maximum minutes of training")
    parser.add_argument("--full", action="store_true", help=f"{FULL} times the steps, no time limit")
    parser.add_argument("--tasks", type=int, default=TASKS, help="test episodes")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--cells", type=Path, default=CELLS)
    parser.add_argument("--threads", type=int, default=0, help="threads of the simulator; 0 = all cores")
    parser.add_argument("--again", action="store_true", help="measure existing cells again")
    parser.add_argument("--list", action="store_true", help="print the tables; they name the cells that were not run")
    parser.add_argument("--readme", action="store_true", help="write the tables into README.md and draw the pictures")
    parser.add_argument("--figure", action="store_true", help="draw Figure 1 and its film; first run missing cells")
    parsed = parser.parse_args()
    try:
        if parsed.list or parsed.readme:
            return _tables(parsed)
        if parsed.figure:
            return _figure(parsed)
        require(parsed.family is not None, "family", parsed.family, "a task family; --list shows the table's")
        require(parsed.steps >= 1, "--steps", parsed.steps, "an integer >= 1")
        require(parsed.tasks >= 2, "--tasks", parsed.tasks, "an integer >= 2")
        columns = parsed.agents or [name for name in results_table.all_columns() if _has_preset(parsed.family, name)]
        for column in columns:  # check all of them before the first one runs for hours
            cell_config(parsed.family, column, 0)
        for seed in parsed.seeds:
            for column in columns:
                reproduce(parsed.family, column, seed, parsed)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def reproduce(family: str, column: str, seed: int, parsed: argparse.Namespace) -> None:
    """Measures one cell, unless its file exists."""
    name = f"{column.replace(':', '.')}-seed{seed}"
    path = parsed.cells / family / f"{name}.json"
    if path.is_file() and not parsed.again:
        print(f"{path}: is there")
        return
    steps, minutes = (FULL * parsed.steps, None) if parsed.full else (parsed.steps, parsed.minutes)
    config = cell_config(family, column, seed, steps=steps, minutes=minutes, threads=parsed.threads)
    command = f"python scripts/reproduce.py {family} --agents {column} --seeds {seed}"
    command += " --full" if parsed.full else f" --steps {steps}" if steps != STEPS else ""
    command += f" --minutes {minutes:g}" if minutes not in (None, MINUTES) else ""
    command += f" --tasks {parsed.tasks}" if parsed.tasks != TASKS else ""
    run_dir, long = parsed.runs / family / name, column.endswith(results_table.LONG)
    cell = run_cell(config, run_dir, num_tasks=parsed.tasks, command=command, until_flat=long)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json({"column": column} | cell, path, indent=None)
    means = zip(cell["budgets"], np.mean(cell["values"], 1).round(2).tolist(), strict=True)
    print(f"{path}: {dict(means)}", flush=True)


def _figure(parsed: argparse.Namespace) -> int:
    for family, column, steps in FIGURE_CELLS:
        parsed.steps = steps
        reproduce(family, column, 0, parsed)
    if not MEMORIES_FILE.is_file():
        learners = {}
        for memory, (iterations, batch) in MEMORY_RUNS.items():
            config = with_iterations(resolve("bandit", "rl2", preset="100x5"), iterations)
            agent = dataclasses.replace(config.agent, memory=memory)
            trainer = dataclasses.replace(config.trainer, meta_batch_size=batch, device="cpu")
            config = dataclasses.replace(config, agent=agent, trainer=trainer)
            run_dir = parsed.runs / "bandit" / memory
            trained(config, run_dir)
            learners[f"RL² ({memory.upper() if len(memory) < 5 else memory})"] = load(run_dir)
        panel = compare_bandits.compare(learners, 5, 100, 20_000, 0)
        write_atomically(MEMORIES_FILE, (json.dumps([panel]) + "\n").encode())
    panels = json.loads(MEMORIES_FILE.read_text())
    picture, film = (ROOT / "results" / name for name in ("figure-1.png", "half-cheetah-dir-adaptation.webp"))
    figure_one.draw(results_table.read_cells(parsed.cells), panels).savefig(picture, dpi=130)
    print(picture)
    filmed = parsed.runs / "half-cheetah-dir" / "maml-seed0"
    if not (filmed / "adaptation.json").is_file():  # its cell existed, so nothing was trained
        print(f"{film}: not drawn anew; {filmed} holds no run (--again trains it)")
        return 0
    save_film(make_film(load_trainer(filmed), FILM), film)
    print(film)
    return 0


def _tables(parsed: argparse.Namespace) -> int:
    cells = results_table.read_cells(parsed.cells)
    print("\n\n".join(f"{name}\n\n{table}" for name, table in results_table.tables(cells).items()))
    if parsed.readme:
        readme = ROOT / "README.md"
        write_atomically(readme, results_table.filled(readme.read_text(), cells).encode())
        for family in results_table.families(cells):
            rows = [
                {**cell, "label": column}
                for column in results_table.columns(cells)
                for cell in cells.get((family, column), [])
            ]
            if rows:
                with matplotlib.rc_context({"font.size": 11}):
                    figure = compare_agents.draw(family, compare_agents.summarise(rows))
                figure.savefig(ROOT / "results" / f"{family}-agents.png", dpi=110)
    return 0


def _has_preset(family: str, column: str) -> bool:
    name, _, preset = column.partition(":")
    return not preset or preset in presets(family, name)


if __name__ == "__main__":
    sys.exit(main())
