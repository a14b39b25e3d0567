"""Trained agents at equal budgets on the test tasks: tables, and a picture against environment steps.

    python scripts/compare_agents.py runs/maml-0 runs/maml-1 runs/rl2-0 --json compare.json --picture compare.png
    python scripts/compare_agents.py --from compare.json --picture compare.png

A budget is a number of trajectories of the test task that the agent may learn from before it is scored. An agent that
adapts by gradient steps takes at most its own number of trajectories a step: a budget of 2 is one step on two
trajectories, a budget of 40 is two steps on twenty. An agent with a memory is scored on the first trajectory after that
many.

Runs of one agent and preset count as its seeds. The step size is chosen from one grid of factors on validation tasks,
which are tasks of the training split with their own random numbers. All agents get the same tasks and random numbers.
Intervals of several seeds come from `metarl.core.statistics.crossed_interval`. The differences from the first agent
follow, paired by task and seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from results_table import BUDGETS, difference, summary, values_of

from metarl.core.curve import AdaptationCurve
from metarl.core.errors import InputError, require
from metarl.core.evaluation import evaluate
from metarl.core.statistics import Array
from metarl.core.step_scale import choose_step_scale
from metarl.rl.rollout import RolloutCollector
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs.config import RunConfig, load_config
from metarl.runs.load import load_trainer
from metarl.runs.reports import read_report

PARALLEL_TRIALS = 5  # of an agent with a memory, on each test task
CONTROLS = {"own task": "D", "another task": "X", "no reward": "o", "nothing": "|"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933", "#882255", "#332288", "#000000")
COLOURS += ("#777777", "#AA4499", "#44AA99", "#BBBBBB", "#661100", "#88CCEE")


class Budget:
    """A collector with few trajectories to learn from and many to be scored on."""

    acts = True

    def __init__(self, support: RolloutCollector, query: RolloutCollector) -> None:
        self.support = support.support
        self.query = query.query


def measure(run_dir: Path, num_tasks: int, seed: int) -> dict[str, Any]:
    """Scores of one run at every budget; its step size is chosen on validation tasks."""
    config = load_config(run_dir)
    trainer = load_trainer(run_dir)
    tasks = trainer.distribution
    assert isinstance(tasks, EnvTaskDistribution)
    remembers = trainer.learner.traits.state_per == "trajectory"
    query = RolloutCollector(tasks, num_trajectories=PARALLEL_TRIALS if remembers else config.agent.num_trajectories)
    learner, validation = choose_step_scale(
        trainer.learner, query, tasks, num_tasks=max(1, num_tasks // 2), num_steps=2
    )

    def curve_of(collector: Any, num_steps: int) -> AdaptationCurve:
        return evaluate(learner, collector, tasks, num_tasks=num_tasks, num_steps=num_steps, seed=seed)

    points: dict[int, tuple[AdaptationCurve, int]] = {}
    if remembers:
        curve = curve_of(query, BUDGETS[-1])
        points |= {budget: (curve, budget) for budget in BUDGETS}
    else:
        whole = {budget: budget // query.num_trajectories for budget in BUDGETS if budget % query.num_trajectories == 0}
        curve = curve_of(query, max(whole.values()))
        points |= {budget: (curve, step) for budget, step in whole.items()}
        for budget in BUDGETS:
            if budget not in points:
                steps = -(-budget // query.num_trajectories)
                support = RolloutCollector(tasks, num_trajectories=budget // steps)
                points[budget] = curve_of(Budget(support, query), steps), steps
                support.close()
    return {
        "label": label_of(config),
        "task": config.task_name,
        "seed": config.trainer.seed,
        "iterations": trainer.iteration,
        "trained_on_env_steps": trainer.env_steps,
        "step_scale": max(validation, key=lambda factor: validation[factor]) if validation else 1.0,
        "validation": {str(factor): round(score, 3) for factor, score in validation.items()},
        **scores_at(points),
        "controls": controls_of(read_report(run_dir)),
    }


def label_of(config: RunConfig) -> str:
    """The agent and, in brackets, its kind of memory if it has one, or a preset other than "default"."""
    preset = None if config.preset == "default" else config.preset
    variant = asdict(config.agent).get("memory", preset)
    return config.agent_name if variant is None else f"{config.agent_name} ({variant})"


def scores_at(points: Mapping[int, tuple[AdaptationCurve, int]]) -> dict[str, Any]:
    """The test tasks, and the scores on them, [budgets][tasks x replicates].

    Args:
        points: for each budget, a curve, and its step after learning from that many trajectories.

    Raises:
        ValueError: the curves are of different tasks.
    """
    (tasks, *others) = [list(map(str, points[budget][0].tasks)) for budget in BUDGETS]
    if any(other != tasks for other in others):
        raise ValueError(
            f"the budgets {list(BUDGETS)} were measured on different tasks; measure all of them on the same tasks"
        )
    found = [(curve.values[step].ravel(), curve.env_steps[step]) for curve, step in map(points.__getitem__, BUDGETS)]
    return {
        "tasks": tasks,
        "budgets": list(BUDGETS),
        "env_steps": [round(env_steps, 1) for _, env_steps in found],
        "values": [[round(float(value), 3) for value in values] for values, _ in found],
    }


def controls_of(report: dict[str, Any]) -> dict[str, Any] | None:
    """Means of the cross-adaptation matrix on and off its diagonal, and of the other controls."""
    cross = report.get("cross_adaptation")
    if cross is None:
        return None
    matrix = np.asarray(cross["matrix"])
    diagonal = np.eye(len(matrix), dtype=bool)
    means = (matrix[diagonal], matrix[~diagonal], cross["zero_reward"], cross["before"])
    named = {name: round(float(np.mean(value)), 3) for name, value in zip(CONTROLS, means, strict=True)}
    return {**named, "matrix": np.round(matrix, 3).tolist(), "tasks": cross["tasks"]}


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds of each label, with 95 % intervals over the seeds and their common tasks.

    The differences from the first label are paired by task and seed.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["label"], []).append(run)
    first, rows = runs[0]["label"], []
    for label, own in groups.items():
        above = None if label == first else difference(own, groups[first])
        controls = [run["controls"] for run in own if run["controls"] is not None]
        rows.append(
            {
                "label": label,
                "seeds": [run["seed"] for run in own],
                "trained_on_env_steps": [run["trained_on_env_steps"] for run in own],
                "budgets": own[0]["budgets"],
                "env_steps": np.mean([run["env_steps"] for run in own], axis=0).round(1).tolist(),
                **_rounded(*summary(own)),
                "per_seed": values_of(own).mean((2, 3)).T.round(3).tolist(),
                "above_first": None if above is None else {"label": first, **_rounded(*above)},
                "controls": {name: round(float(np.mean([c[name] for c in controls])), 3) for name in CONTROLS}
                if controls
                else None,
            }
        )
    return rows


def _rounded(mean: Array, low: Array, high: Array) -> dict[str, list[float]]:
    return {name: part.round(3).tolist() for name, part in (("mean", mean), ("ci_low", low), ("ci_high", high))}


def draw(task: str, rows: Sequence[dict[str, Any]]) -> Figure:
    """Return against environment steps spent on the test task, and the results of the controls."""
    figure = Figure(figsize=(13.0, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1.0))
    linear = min(row["env_steps"][1] for row in rows)
    for colour, row in zip(cycle(COLOURS), rows, strict=False):
        many = len(row["seeds"]) > 1
        label = f"{row['label']}, {len(row['seeds'])} seeds" if many else f"{row['label']}, 1 seed"
        left.plot(row["env_steps"], row["mean"], color=colour, marker="o", markersize=4, linewidth=1.6, label=label)
        left.fill_between(row["env_steps"], row["ci_low"], row["ci_high"], color=colour, alpha=0.13, linewidth=0)
    left.set_xscale("symlog", linthresh=linear, linscale=0.5)
    furthest = max(row["env_steps"][-1] for row in rows)
    left.set_xticks([0.0, *(10.0**k for k in range(9) if 0.9 * linear <= 10.0**k <= furthest)])
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    left.set_xlabel("environment steps spent on the test task\n(budgets of " + ", ".join(map(str, BUDGETS)) + ")")
    left.set_ylabel("return")
    left.set_title(f"{task}: what a budget of trajectories buys")
    left.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    with_controls = [(colour, row) for colour, row in zip(cycle(COLOURS), rows, strict=False) if row["controls"]]
    for place, (colour, row) in enumerate(reversed(with_controls)):
        for name, marker in CONTROLS.items():
            right.plot(row["controls"][name], place, marker=marker, color=colour, markersize=9, markerfacecolor="none")
    for name, marker in CONTROLS.items():
        right.plot([], [], marker=marker, color="#444444", linestyle="none", markerfacecolor="none", label=name)
    right.set_yticks(range(len(with_controls)), [row["label"] for _, row in reversed(with_controls)])
    right.set_xlabel("return")
    right.set_title("... having adapted to")
    right.legend(frameon=False, fontsize=8, loc="best")
    right.grid(axis="y", alpha=0.2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line of text for each agent, then one for each difference from the first agent."""
    lines = ["agent                 seeds  " + "".join(f"{budget:>24}" for budget in rows[0]["budgets"])]
    lines += [f"{row['label']:22}{len(row['seeds']):5}  {_scores(row)}" for row in rows]
    pairs = [row for row in rows if row["above_first"]]
    if pairs:
        lines.append(f"minus {rows[0]['label']}, paired by task and seed")
        lines += [f"{row['label']:29}{_scores(row['above_first'])}" for row in pairs]
    return lines


def _scores(row: Mapping[str, Any]) -> str:
    parts = zip(row["mean"], row["ci_low"], row["ci_high"], strict=True)
    return "".join(f"{f'{mean:.1f} [{low:.1f}, {high:.1f}]':>24}" for mean, low, high in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR")
    parser.add_argument("--from", dest="source", type=Path, help="a file that --json wrote, instead of run folders")
    parser.add_argument("--tasks", type=int, default=40, help="test episodes (%(default)s)")
    parser.add_argument("--seed", type=int, default=1_000_000, help="seed of the evaluation")
    parser.add_argument("--json", type=Path, help="write all scores there")
    parser.add_argument("--picture", type=Path, help="draw the scores there: a png, pdf or svg file")
    parsed = parser.parse_args()
    try:
        require(bool(parsed.runs) != bool(parsed.source), "runs", len(parsed.runs), "run folders, or --from FILE")
        runs = json.loads(parsed.source.read_text())["runs"] if parsed.source else []
        for run_dir in parsed.runs:
            runs.append(measure(run_dir, parsed.tasks, parsed.seed))
            print(f"{run_dir}: {runs[-1]['label']}", file=sys.stderr, flush=True)
        tasks = sorted({run["task"] for run in runs})
        require(len(tasks) == 1, "runs", tasks, "runs on one task family")
        rows = summarise(runs)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(table(rows)))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps({"task": tasks[0], "summary": rows, "runs": runs}) + "\n")
    if parsed.picture is not None:
        with matplotlib.rc_context({"font.size": 11}):
            draw(tasks[0], rows).savefig(parsed.picture, dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
