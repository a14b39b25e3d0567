"""Mean squared error on sine waves after 0 to 10 gradient steps, for every learner with a preset, as a picture.

    python scripts/compare_sinusoid.py --runs runs/sinusoid --json sinusoid.json --picture sinusoid.png

Trains every learner that has a preset for `sinusoid`, each into a folder of its own; this takes minutes for each. A
folder that holds a finished run is used as it is. All learners are tested on the same 600 waves and points. The oracle
has amplitude and phase among its inputs: it need not adapt, and is drawn as a line.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from comparing import with_iterations
from matplotlib.figure import Figure

from metarl.report import plots
from metarl.runs.config import resolve
from metarl.runs.registry import LEARNERS, presets
from metarl.runs.reports import read_report, write_json
from metarl.runs.train import train

ORACLE = "oracle"  # a preset
NAMES = {"maml": "MAML", "fomaml": "FOMAML", "meta-sgd": "Meta-SGD", "reptile": "Reptile"}


def learners() -> dict[str, tuple[str, str]]:
    """Learner and preset by label: those with a default preset in the registry's order, then the oracle."""
    found = {}
    for preset in ("default", ORACLE):
        for name in LEARNERS:
            if preset in presets("sinusoid", name):
                found[ORACLE if preset == ORACLE else NAMES.get(name, name)] = (name, preset)
    return found


def report_of(run_dir: Path, agent: str, preset: str, *, iterations: int | None, seed: int) -> dict[str, Any]:
    """The contents of the run's `adaptation.json`; trains the learner if the file is missing."""
    if not (run_dir / "adaptation.json").is_file():
        config = resolve("sinusoid", agent, preset=preset)
        config = with_iterations(config, iterations or config.trainer.iterations)
        train(replace(config, trainer=replace(config.trainer, seed=seed)), run_dir)
    return read_report(run_dir)


def picture(reports: dict[str, dict[str, Any]]) -> Figure:
    """All curves with their intervals, on a logarithmic scale."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (label, report), colour in zip(reports.items(), plots.COLOURS, strict=False):
        steps = np.arange(len(report["mean"]))
        if label == ORACLE:
            axes.axhline(report["mean"][0], color=colour, linestyle=":", label=label)
            continue
        axes.plot(steps, report["mean"], color=colour, marker="o", markersize=4, label=label)
        axes.fill_between(steps, report["ci_low"], report["ci_high"], color=colour, alpha=0.18, linewidth=0)
    axes.set(yscale="log", xlabel="gradient steps on 10 points", ylabel="mean squared error (lower is better)")
    axes.set_title("sine waves: 600 test waves, 95 % intervals")
    axes.legend(frameon=False)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder for the run folders")
    parser.add_argument("--iterations", type=int, help="iterations of each run (default: its preset's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parsed = parser.parse_args()
    reports = {}
    for label, (agent, preset) in learners().items():
        run_dir = parsed.runs / label.lower()
        reports[label] = report_of(run_dir, agent, preset, iterations=parsed.iterations, seed=parsed.seed)
        print(f"{label:10}", " ".join(f"{value:.3f}" for value in reports[label]["mean"]), flush=True)
    if parsed.json:
        kept = ("mean", "ci_low", "ci_high", "num_tasks", "env_steps")
        write_json({label: {key: report[key] for key in kept} for label, report in reports.items()}, parsed.json)
    if parsed.picture:
        plots.save_figure(picture(reports), parsed.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
