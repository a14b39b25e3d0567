"""The printed command that resumes a run works as printed, also for own classes and for data that was moved."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import metarl
from metarl.cli.main import main
from metarl.core import trainer
from metarl.core.errors import InputError
from metarl.report import plots
from metarl.runs import checkpoint

TINY = (
    "--quiet --iterations 2 --meta-batch-size 2 --device cpu --evaluation.num-tasks 2 "
    "--evaluation.num-adaptation-steps 1 --evaluation.no-controls"
)
OWN = """
from dataclasses import dataclass
from metarl.agents.maml import MAML
from metarl.envs.bandit import Bandit

@dataclass(frozen=True)
class Family(Bandit):
    pass

class Agent(MAML):
    pass
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plots, "adaptation_figure", lambda report: Figure())
    (tmp_path / "going_on_own.py").write_text(OWN)
    yield
    sys.modules.pop("going_on_own", None)


def printed(text: str) -> list[str]:
    """The arguments of the command in `text`, as a shell reads them."""
    found = re.search(r"metarl train (.*?)(?: goes on|, or name another folder|\n)", text)
    assert found is not None, text
    return ["train", *shlex.split(found[1])]


@pytest.mark.parametrize(
    ("names", "own"),
    [
        ("bandit", ""),
        ("going_on_own:Family", "going_on_own:Family "),
        ("bandit --agent going_on_own:Agent", "--agent going_on_own:Agent "),
        ("going_on_own:Family --agent going_on_own:Agent", "going_on_own:Family --agent going_on_own:Agent "),
    ],
)
def test_the_printed_command_goes_on_with_the_run(
    names: str, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir, flags = Path("one's run"), TINY.split()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", stopped)
        assert main(["train", *names.split(), *flags, "--run-dir", str(run_dir)]) == 143
    monkeypatch.chdir(tmp_path)
    said = capfd.readouterr().err
    assert own + "--resume 'one'\"'\"'s run' goes on\n" in said
    command = printed(said)
    assert main(["train", *names.split(), *flags, "--run-dir", str(run_dir)]) == 2
    assert printed(capfd.readouterr().err) == command
    if own:
        assert main(["train", "--resume", str(run_dir)]) == 2
        assert printed(capfd.readouterr().err) == command
        assert main(["evaluate", str(run_dir)]) == 2
        assert "with --trust (from Python, trusted=True)" in capfd.readouterr().err
    assert main(command) == 0
    assert main([*command, "--iterations=3", "--quiet"]) == 0
    assert checkpoint.latest(run_dir).iteration == 3
    assert main(["evaluate", str(run_dir), "--trust", "--tasks=2"]) == 0
    assert metarl.load(run_dir, trusted=True).num_adaptation_steps == 1


def stopped(*values: Any, **settings: Any) -> Any:
    os.chdir("/")  # as an environment may
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_whose_data_was_moved_is_evaluated_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number in range(8 * 4):
        path = Path("my data", f"class{number % 8}", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (4, 4), dtype=np.uint8)).save(path)
    task = "--task.image-size 28 --task.grey --task.num-ways 2 --task.num-shots 1 --task.num-queries 1 --task.shares"
    shares = "0.5 0.25 0.25 --agent proto --agent.num-filters 2"
    command = ["train", "image-folder", *f"{task} {shares} {TINY}".split(), "--task.root", "my data"]
    assert main([*command, "--run-dir", "run"]) == 0
    monkeypatch.chdir(tmp_path / "run")  # another working directory than before
    assert main(["evaluate", "."]) == 0
    monkeypatch.chdir(tmp_path)
    Path("my data").rename("new place")
    capsys.readouterr()
    for unmoved in (["evaluate", "run"], ["train", "--resume", "run"]):
        assert main(unmoved) == 2
        assert capsys.readouterr().err.startswith(f"metarl: task.root = '{tmp_path / 'my data'}': must be a folder")
    assert main(["evaluate", "run", "--json", "moved.json", "--task.root", "new place"]) == 0
    assert {"trained_on", "evaluated_on"}.isdisjoint(json.loads(Path("moved.json").read_text()))
    assert metarl.load("run", paths={"root": "new place"}).num_adaptation_steps == 1
    with pytest.raises(InputError, match="paths: cash: unknown"):
        metarl.load("run", paths={"root": "new place", "cash": "x"})
    assert main(["evaluate", "run", "--task.root=new place", "--task.num-shots=2", "--json", "other.json"]) == 0
    assert {"trained_on", "evaluated_on"} <= json.loads(Path("other.json").read_text()).keys()
    assert main(["evaluate", "run", "--task.root"]) == 2  # before the missing value is used
    shutil.copytree("run", "again")
    assert main(["train", "--resume", "run", "--iterations=3", "--task.root", "new place", "--quiet"]) == 0
    assert main(["train", "--resume", "run", "--iterations=4", "--quiet"]) == 0
    assert checkpoint.latest(Path("run")).iteration == 4
    assert main(["train", "--resume", "again", "--task.num-shots=2", "--task.root=new place"]) == 2
