"""Accuracy of trained few-shot learners on 5 and 20 classes with 1 and 5 examples, with the published figures.

    metarl train omniglot --agent proto --task.root DATA --run-dir runs/proto
    python scripts/compare_fewshot.py runs/proto runs/maml --json compare.json

Metric learners (prototypes, matching, ...) are tested on every number of classes and examples. The other learners have
a network with a fixed number of outputs and are tested as they were trained. Every cell averages `--episodes` test
episodes and has a 95 % interval. It also has the accuracy that comparing pixels reaches on the same episodes. The
training setting is read from the run folder. The published figures come from papers with protocols of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from metarl.core.evaluation import evaluate
from metarl.fewshot.base.baseline import evaluate_baseline
from metarl.runs.build import build
from metarl.runs.config import load_config
from metarl.runs.load import load_trainer
from metarl.runs.reports import write_json

# Published accuracy in percent by family and learner, on 5-way 1-shot, 5-way 5-shot, 20-way 1-shot and 20-way 5-shot.
# Matching, MAML, Relation, Reptile and Proto: their papers (arXiv:1606.04080, 1703.03400, 1711.06025, 1803.02999,
# 1703.05175; Reptile without transduction); Siamese: as re-run by Vinyals et al. 2016.
PUBLISHED: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "omniglot": {
        "proto": (98.8, 99.7, 96.0, 98.9),
        "matching": (98.1, 98.9, 93.8, 98.5),
        "maml": (98.7, 99.9, 95.8, 98.9),
        "relation": (99.6, 99.8, 97.6, 99.1),
        "siamese": (97.3, 98.4, 88.2, 97.0),
        "reptile": (95.4, 98.9, 88.1, 96.7),
    }
}
CELLS = ((5, 1), (5, 5), (20, 1), (20, 5))


def test_run(run_dir: Path, *, episodes: int, queries: int | None) -> dict[str, Any]:
    """How one run was trained, and its accuracies."""
    config = load_config(run_dir)
    trainer = load_trainer(run_dir, num_tasks=episodes)
    ways = sorted({ways for ways, _ in CELLS}) if trainer.learner.traits.support == "shot" else [config.task.num_ways]
    cells = []
    for number in ways:
        given = {"num_ways": number, "train_ways": config.task.train_ways or config.task.num_ways}
        task = replace(config.task, **given, num_queries=queries or config.task.num_queries)
        cells += test_task(replace(config, task=task), trainer, episodes)
    train = config.task.train_ways or config.task.num_ways, config.task.train_shots or config.task.num_shots
    return {
        "learner": config.agent_name,
        "task": config.task_name,
        "iterations": trainer.iteration,
        "minutes": round(trainer.wall_s / 60, 1),
        "seed": config.trainer.seed,
        "trained": f"{train[0]}-way {train[1]}-shot on {config.task.train_split}",
        "rotated_test_classes": config.task.test_rotations,
        "settings": trainer.learner.settings,
        "cells": cells,
        "published": PUBLISHED.get(config.task_name, {}).get(config.agent_name),
    }


def test_task(config: Any, trained: Any, episodes: int) -> list[dict[str, Any]]:
    """One cell for each number of shots; all cells use the same episodes."""
    trainer = build(replace(config, trainer=replace(config.trainer, device="cpu")))
    trainer.learner.load_state_dict(trained.learner.state_dict())
    by_shots = trainer.learner.traits.support == "shot"
    shots = sorted({shots for _, shots in CELLS}) if by_shots else [config.task.num_shots]
    last = max(shots) if by_shots else config.evaluation.num_adaptation_steps
    task = config.task
    curve = evaluate(trainer.learner, trainer.collector, task, num_tasks=episodes, num_steps=last, batch_size=8, seed=0)
    low, high = curve.interval()
    cells = []
    for count in shots:
        step = count if by_shots else last
        baseline = evaluate_baseline(replace(task, num_shots=count, train_shots=task.num_shots), curve.tasks, seed=0)
        cell = {"ways": task.num_ways, "shots": count, "queries": task.num_queries, "episodes": episodes}
        if not by_shots:
            cell["gradient_steps"] = step
        score = {"mean": curve.mean[step], "ci_low": low[step], "ci_high": high[step]}
        cell |= {name: round(100 * float(value), 2) for name, value in score.items()}
        cells.append(cell | {"pixels": round(100 * baseline.mean, 1) if baseline else None})
    return cells


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table: accuracy in percent with its interval, and the published figure in brackets."""
    names = [f"{ways}-way {shots}-shot" for ways, shots in CELLS]
    lines = ["| " + " | ".join(["learner", "trained", "iterations", "batch norm", *names]) + " |", "|---" * 8 + "|"]
    for row in rows:
        shown = {(cell["ways"], cell["shots"]): cell for cell in row["cells"]}
        entries = []
        for place, key in enumerate(CELLS):
            published = f" ({row['published'][place]})" if row["published"] else ""
            cell = shown.get(key)
            own = f"{cell['mean']:.1f} [{cell['ci_low']:.1f}, {cell['ci_high']:.1f}]" if cell else "not run"
            entries.append(own + published)
        norm = row["settings"].get("batch_norm", "")
        lines.append("| " + " | ".join([row["learner"], row["trained"], str(row["iterations"]), norm, *entries]) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--episodes", type=int, default=1000, help="test episodes of every cell")
    parser.add_argument("--queries", type=int, help="query examples of each class (default: the run's own number)")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    rows = []
    for run_dir in parsed.runs:
        rows.append(test_run(run_dir, episodes=parsed.episodes, queries=parsed.queries))
        print(json.dumps(rows[-1]), flush=True)
    print(*table(rows), sep="\n")
    if parsed.json:
        write_json({"command": " ".join(["compare_fewshot.py", *map(str, sys.argv[1:])]), "rows": rows}, parsed.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
