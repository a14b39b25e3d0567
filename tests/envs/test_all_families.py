"""Tests of every registered task family: training is finite and repeatable."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from metarl.core import curve
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.statistics import bootstrap
from metarl.report import plots
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs import checkpoint
from metarl.runs.config import RunConfig, resolve
from metarl.runs.registry import TASKS, load_task
from metarl.runs.tracking import read_metrics
from metarl.runs.train import train

FAMILIES = sorted(name for name in TASKS if issubclass(load_task(name), EnvTaskDistribution))


def small(family: str) -> RunConfig:
    """MAML on `family`, with its own settings but few and short trajectories."""
    config = resolve(family, "maml")
    task = config.task
    if "horizon" in {field.name for field in dataclasses.fields(task)}:
        task = dataclasses.replace(task, horizon=5)
    return dataclasses.replace(
        config,
        task=task,
        agent=dataclasses.replace(config.agent, num_trajectories=3, hidden_sizes=(8,), curvature_every=1),
        trainer=TrainerConfig(iterations=5, meta_batch_size=3, seed=1, device="cpu", num_threads=1),
        evaluation=EvaluationConfig(num_tasks=4, num_adaptation_steps=1, controls=False),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_five_iterations_of_maml_are_finite_and_the_same_each_time(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "adaptation_figure", lambda report: Figure())
    monkeypatch.setattr(curve, "bootstrap", functools.partial(bootstrap, num_resamples=10))
    reports: list[dict[str, Any]] = [train(small(family), tmp_path / name) for name in ("first", "second")]
    assert json.dumps(reports[0]) == json.dumps(reports[1])
    assert all(math.isfinite(value) for step in reports[0]["per_task"] for value in step)
    first, second = (checkpoint.latest(tmp_path / name) for name in ("first", "second"))
    assert first.manifest["parameters_sha256"] == second.manifest["parameters_sha256"]
    rows = read_metrics(tmp_path / "first")
    assert [row["health/nonfinite_skips"] for row in rows] == [0.0] * 5
    assert [row["health/diverged_sims"] for row in rows] == [0.0] * 5
