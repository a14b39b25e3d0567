"""Learning end to end, with the quick presets.

Thresholds stand well below what was measured: point-nav, seed 2, -42.6 before and -14.0 after one step; bandit, seed 0,
0.51 and 0.75.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metarl.runs.config import resolve
from metarl.runs.train import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "seed", "after_one_step", "gain"), [("point-nav", 2, -18.0, 15.0), ("bandit", 0, 0.65, 0.12)]
)
def test_maml_learns_to_adapt(task: str, seed: int, after_one_step: float, gain: float, tmp_path: Path) -> None:
    config = resolve(task, "maml", preset="quick")
    config = replace(config, trainer=replace(config.trainer, seed=seed, iterations=15))
    report = train(config, tmp_path / "run")
    assert report["mean"][1] > after_one_step
    assert report["gain"]["ci_low"][1] > gain
    cross = report["cross_adaptation"]
    diagonal = sum(row[i] for i, row in enumerate(cross["matrix"])) / len(cross["matrix"])
    assert diagonal > sum(cross["zero_reward"]) / len(cross["zero_reward"])
