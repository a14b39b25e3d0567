"""Reports of progress while a user's code runs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from metarl.cli import waiting
from metarl.cli.main import main
from metarl.core.tasks import Split
from tests.testing.test_environments import Walks


class Slow(Walks):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> Any:
        time.sleep(0.06)
        return super().sample(num_tasks, rng)


def test_what_takes_long_is_said_on_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting.reporting("checking") as begin:
        begin("sample")
    with waiting.reporting("checking") as begin:
        begin("reset")
        time.sleep(1.1)
    assert capsys.readouterr().err == "metarl: checking, 1 s: reset\n"


def test_on_a_terminal_nothing_is_shown_before_and_nothing_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats any stream as a terminal
    monkeypatch.setenv("TERM", "xterm")
    with waiting.reporting("checking"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(waiting, "SILENCE_S", 0.2)
    with waiting.reporting("checking") as begin:
        begin("reset")
        time.sleep(0.6)
    shown = capsys.readouterr().err
    assert "metarl: checking, 0 s: reset" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased


@pytest.mark.parametrize("command", ["check-tasks", "train"])
def test_checks_say_what_they_wait_for(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setattr(waiting, "SILENCE_S", 0.05)
    tiny = (
        "--iterations=1 --meta-batch-size=1 --agent.num-trajectories=1 --agent.hidden-sizes=2 --evaluation.no-controls"
    )
    few = "--evaluation.num-tasks=1 --evaluation.num-adaptation-steps=1"
    settings = f"{tiny} {few} --run-dir={tmp_path / 'run'}".split() if command == "train" else []
    assert main([command, f"{__name__}:Slow", *settings]) == 0
    assert f"metarl: checking {__name__}:Slow, 0 s: sample(split='t" in capsys.readouterr().err
