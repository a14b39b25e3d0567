"""Mean squared error on sine waves after 0 to 10 gradient steps, of every learner that takes some, as a picture.

    python scripts/compare_sinusoid.py --runs runs/sinusoid --json sinusoid.json --picture sinusoid.png

Trains each learner with its preset into a folder of its own (minutes each; a folder that holds a finished run
is used as it is) and tests all of them on the same 600 waves and points. The oracle is told amplitude and phase: it has
nothing to adapt to and is drawn as a line.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metarl.report import plots
from metarl.runs.config import resolve
from metarl.runs.reports import read_report, write_json
from metarl.runs.train import train

LEARNERS = {
    "MAML": ("maml", "default"),
    "FOMAML": ("fomaml", "default"),
    "Meta-SGD": ("meta-sgd", "default"),
    "Reptile": ("reptile", "default"),
    "fine-tune": ("fine-tune", "default"),
    "oracle": ("fine-tune", "oracle"),
}


def report_of(label: str, folder: Path, *, iterations: int | None, seed: int) -> dict[str, Any]:
    """What `adaptation.json` of the learner's run holds; trains it where there is none."""
    run_dir = folder / label.lower()
    if not (run_dir / "adaptation.json").is_file():
        agent, preset = LEARNERS[label]
        config = resolve("sinusoid", agent, preset=preset)
        trainer = replace(config.trainer, seed=seed, iterations=iterations or config.trainer.iterations)
        if getattr(config.agent, "schedule_iterations", None):
            config = replace(config, agent=replace(config.agent, schedule_iterations=trainer.iterations))
        train(replace(config, trainer=trainer), run_dir)
    return read_report(run_dir)


def picture(reports: dict[str, dict[str, Any]]) -> Figure:
    """All curves with their intervals, on a logarithmic scale."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (label, report), colour in zip(reports.items(), plots.COLOURS, strict=False):
        steps = np.arange(len(report["mean"]))
        if label == "oracle":
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
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs' folders")
    parser.add_argument("--iterations", type=int, help="of each; the preset's number by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parsed = parser.parse_args()
    reports = {}
    for label in LEARNERS:
        reports[label] = report_of(label, parsed.runs, iterations=parsed.iterations, seed=parsed.seed)
        print(f"{label:10}", " ".join(f"{value:.3f}" for value in reports[label]["mean"]), flush=True)
    if parsed.json:
        kept = ("mean", "ci_low", "ci_high", "num_tasks", "env_steps")
        write_json({label: {key: report[key] for key in kept} for label, report in reports.items()}, parsed.json)
    if parsed.picture:
        plots.save_figure(picture(reports), parsed.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
