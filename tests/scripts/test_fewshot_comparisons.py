"""The scripts that compare few-shot learners report what the runs did."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from metarl.cli import main as cli
from metarl.runs.load import load_trainer
from metarl.runs.reports import read_report

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SMALL = ["--iterations", "2", "--agent.num-filters", "4", "--meta-batch-size", "2", "--evaluation.num-tasks", "4"]


def run_script(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    assert not stop.value.code


def test_accuracies_are_those_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proto, maml, result = tmp_path / "proto", tmp_path / "maml", tmp_path / "result.json"
    task = ["--task.num-queries", "1", "--quiet"]
    for agent, run_dir in (("proto", proto), ("maml", maml)):
        own = ["--task.train-ways", "6"] if agent == "proto" else []
        assert cli.main(["train", "glyphs", "--agent", agent, "--run-dir", str(run_dir), *SMALL, *task, *own]) == 0
    run_script("compare_fewshot", [str(proto), str(maml), "--episodes", "8", "--json", str(result)], monkeypatch)
    rows: list[dict[str, Any]] = json.loads(result.read_text())["rows"]
    assert [(row["learner"], row["trained"]) for row in rows] == [
        ("proto", "6-way 1-shot on train"),
        ("maml", "5-way 1-shot on train"),
    ]
    cells = [[(cell["ways"], cell["shots"]) for cell in row["cells"]] for row in rows]
    assert cells == [[(5, 1), (5, 5), (20, 1), (20, 5)], [(5, 1)]]
    trainer = load_trainer(maml, num_tasks=8)
    curve = trainer.evaluate()
    assert rows[1]["cells"][0]["mean"] == pytest.approx(100 * curve.mean[-1], abs=0.01)
    assert rows[1]["cells"][0]["gradient_steps"] == len(curve.mean) - 1
    table = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| maml |") and line.count("not run") == 3 for line in table) == 1


@pytest.mark.slow
def test_waves_are_drawn_for_every_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--runs", str(tmp_path / "runs"), "--iterations", "3"]
    files = ["--json", str(tmp_path / "waves.json"), "--picture", str(tmp_path / "waves.png")]
    run_script("compare_sinusoid", [*settings, *files], monkeypatch)
    reports = json.loads((tmp_path / "waves.json").read_text())
    assert [*reports] == ["MAML", "FOMAML", "Meta-SGD", "Reptile", "fine-tune", "oracle"]
    assert reports["MAML"]["mean"] == read_report(tmp_path / "runs" / "maml")["mean"]
    assert len(reports["MAML"]["mean"]) == 11
    assert (tmp_path / "waves.png").read_bytes()[:4] == b"\x89PNG"
    before = (tmp_path / "runs" / "maml" / "config.json").stat().st_mtime_ns
    run_script("compare_sinusoid", settings, monkeypatch)  # finished runs are used as they are
    assert (tmp_path / "runs" / "maml" / "config.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("oracle") == 2
