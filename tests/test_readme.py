"""The README's Python code runs as written."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from metarl.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README.split("## From Python")[1].split("## The contract")[0], re.DOTALL)
QUICK = "--meta-batch-size 2 --evaluation.num-tasks 2 --evaluation.num-adaptation-steps 1 --quiet"
TINY = f"{QUICK} --iterations 2 --agent.num-trajectories 2 --agent.hidden-sizes 4 --evaluation.no-controls"


def block(name: str) -> str:
    """The one that defines the class `name`."""
    (found,) = (block for block in BLOCKS if f"class {name}(" in block)
    return str(found)


def test_adapting_a_trained_agent_takes_ten_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "point-nav", "--iterations", "1", *QUICK.split(), "--run-dir", "runs/point-nav"]) == 0
    assert len(BLOCKS[0].strip().splitlines()) <= 10
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    assert "return before and after one gradient step" in capsys.readouterr().out
    saved = torch.load("adapted.pt", weights_only=True)
    trained = torch.load(next(Path("runs/point-nav/checkpoints").iterdir()) / "state.pt", weights_only=True)[
        "parameters"
    ]
    assert saved.keys() == trained.keys()
    assert any(not torch.equal(saved[name], trained[name]) for name in saved)


@pytest.mark.parametrize("family", ["poles:Poles", "arm:Springs", "maze:HiddenGoals"])
def test_ones_own_tasks_take_fifteen_lines(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if family.startswith("maze"):
        pytest.importorskip("gymnasium_robotics", reason="the maze's package, of the extra dev, is not installed")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the package leaves its models there
    module, name = family.split(":")
    assert f"`{module}.py`" in README
    assert f"{family}`" in README
    assert sum(bool(line.strip()) for line in block(name).splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command line adds the working directory
    Path(f"{module}.py").write_text(block(name))
    assert main(["check-tasks", family]) == 0
    *notes, verdict = capsys.readouterr().out.splitlines()
    assert verdict == f"{family}: fine"
    assert all(line.startswith(f"{family}: note: ") for line in notes), notes
    assert main(["train", family, *TINY.split(), "--run-dir", "run"]) == 0
    report = json.loads(Path("run/adaptation.json").read_text())
    assert ("success" in report) == family.startswith("maze")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mw:ML1Reach", "mw:ML10"])
def test_meta_worlds_recipe(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("metaworld", reason="Meta-World needs an environment of its own, see the README")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mw.py").write_text(block("MetaWorld"))
    assert main(["train", family, *TINY.split(), "--run-dir", "run"]) == 0
    assert "success" in json.loads(Path("run/adaptation.json").read_text())


def test_meta_worlds_constraints_pin_what_the_recipe_installs() -> None:
    heading, *lines = (ROOT / "constraints-metaworld.txt").read_text().splitlines()
    assert heading.startswith("#")
    assert lines == sorted(lines, key=str.casefold)
    pinned = {name.casefold().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    assert pinned["mujoco"] == "3.3.0"
    assert "metaworld" in pinned
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name]), text
