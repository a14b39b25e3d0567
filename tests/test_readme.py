"""The README's Python runs as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from metarl.cli import main
from metarl.registry import load_task
from metarl.testing import check_task_distribution

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README.split("## From Python")[1].split("## The contract")[0], re.DOTALL)
QUICK = "--iterations 1 --meta-batch-size 2 --evaluation.num-tasks 2 --evaluation.num-adaptation-steps 1 --quiet"


def test_adapting_a_trained_agent_takes_ten_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "point-nav", *QUICK.split(), "--run-dir", "runs/point-nav"]) == 0
    assert len(BLOCKS[0].strip().splitlines()) <= 10
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    assert "return before and after one gradient step" in capsys.readouterr().out
    saved = torch.load("adapted.pt", weights_only=True)
    trained = torch.load(next(Path("runs/point-nav/checkpoints").iterdir()) / "state.pt", weights_only=True)[
        "parameters"
    ]
    assert saved.keys() == trained.keys()
    assert any(not torch.equal(saved[name], trained[name]) for name in saved)


def test_ones_own_tasks_train_under_their_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "poles.py").write_text(BLOCKS[1])
    assert check_task_distribution(load_task("poles:Poles")()) == []
    assert main(["train", "poles:Poles", *QUICK.split(), "--run-dir", "runs/poles"]) == 0
    assert (tmp_path / "runs/poles/adaptation.json").is_file()
