"""The script that kills runs: it sees every difference, and a short stress loses nothing."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metarl.cli.flags import parse_train
from metarl.runs.tracking import Tracker
from metarl.runs.train import train

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "stress_resume.py"


@pytest.fixture(scope="module")
def differences() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        return runpy.run_path(str(SCRIPT))["differences"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stress") / "whole"
    flags = "--iterations 2 --checkpoint-every 1 --meta-batch-size 2 --device cpu --agent.hidden-sizes 4"
    evaluation = "--evaluation.num-tasks 2 --evaluation.num-adaptation-steps 1 --evaluation.no-controls"
    train(parse_train(["bandit", *flags.split(), *evaluation.split()]).config, folder)
    return folder


def change_metric(run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["time/env_steps"] += 1
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def change_time(run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps({**row, 'wall_s': 0.0, 'time/fps': 0.0})}\n" for row in rows))


def change_report(run_dir: Path) -> None:
    path = run_dir / "adaptation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 1}))


def repeat_event(run_dir: Path) -> None:
    with Tracker(run_dir.parent / "other", config={}, num_adaptation_steps=1) as record:
        record.log(2, {"adapt/gain": 0.5}, env_steps=1, wall_s=1.0)
    (path,) = (run_dir.parent / "other").glob("events*")
    shutil.move(path, run_dir / "events.out.tfevents.9999999999.000001.other")


def damage(run_dir: Path) -> None:
    (run_dir / "checkpoints" / "iteration_000001" / "state.pt").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda run_dir: None, []),
        (change_time, []),
        (change_metric, ["metrics.jsonl"]),
        (change_report, ["adaptation.json"]),
        (repeat_event, ["TensorBoard"]),
        (damage, ["checkpoints"]),
        (lambda run_dir: (run_dir / ".unfinished-x").mkdir(), ["files"]),
        (lambda run_dir: shutil.rmtree(run_dir / "checkpoints" / "iteration_000001"), ["checkpoints", "files"]),
    ],
)
def test_every_difference_but_of_time_is_seen(
    change: Callable[[Path], object], seen: list[str], differences: Any, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    change(tmp_path / "run")
    assert differences(whole, tmp_path / "run") == seen


@pytest.mark.slow
def test_killed_runs_end_like_one_that_was_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--trials", "2", "--json", str(tmp_path / "lines.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = json.loads((tmp_path / "lines.json").read_text())
    assert json.loads(done.stdout) == line
    assert (line["value"], line["repeats"], line["ratio"], line["lost"]) == (2, 2, 1.0, [])
    assert 1 <= line["kills"] == sum(line["kills_by_place"].values()) <= 4
    assert line["kills_by_place"].keys() <= {"training", "evaluation", "writing"}
