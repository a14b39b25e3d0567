"""Small runs, and the fixtures of their tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from metarl.cli.flags import parse_train
from metarl.report import plots
from metarl.runs.config import RunConfig
from metarl.runs.train import train

TINY = [
    "--meta-batch-size=2",
    "--seed=3",
    "--device=cpu",
    "--agent.num-trajectories=2",
    "--agent.hidden-sizes=4",
    "--evaluation.num-tasks=4",
    "--evaluation.num-adaptation-steps=2",
]


def tiny(*flags: str, task: str = "bandit") -> RunConfig:
    return parse_train([task, *TINY, *flags]).config


@pytest.fixture
def config() -> Callable[..., RunConfig]:
    """The configuration of a tiny run with the given flags."""
    return tiny


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three iterations that also evaluated after the second."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    report = train(tiny("--iterations=3", "--evaluation.every=2", "--checkpoint-every=2"), folder)
    assert report == json.loads((folder / "adaptation.json").read_text())
    return folder


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: drawing takes most of a tiny run's time."""
    monkeypatch.setattr(plots, "adaptation_figure", lambda report: Figure())
