"""The folder of a run: its name, and its lock."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metarl.cli.flags import parse_train
from metarl.core.errors import InputError
from metarl.core.trainer import Callback, Progressed, Trainer
from metarl.runs import folder as run_folder
from metarl.runs.folder import locked_folder, new_run_dir
from metarl.runs.load import load
from metarl.runs.train import train


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.usefixtures("_blank_pictures")
def test_a_folder_in_use_is_not_trained_in_but_can_be_read(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")

    class Second(Callback):
        said = ""

        def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
            with pytest.raises(InputError) as error:
                train(again, tmp_path / "run", resume=True)
            self.said = one_line(error)
            assert load(tmp_path / "run")

    second = Second()
    again = parse_train(["--resume", str(tmp_path / "run"), "--iterations=4", "--evaluation.no-controls"]).config
    train(again, tmp_path / "run", resume=True, callbacks=(second,))
    assert second.said.startswith(f"run_dir = '{tmp_path / 'run'}': in use by process {os.getpid()} since 20")
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.usefixtures("_elsewhere")
def test_a_new_run_dir_is_made_at_once_and_gone_again_if_it_stays_empty(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "time", SimpleNamespace(strftime=lambda _: "20260102-030405"))
    with new_run_dir(config()) as first, new_run_dir(config()) as second:
        assert [str(path) for path in (first, second)] == [
            "runs/bandit-maml-20260102-030405-seed3", "runs/bandit-maml-20260102-030405-seed3-1"
        ]  # fmt: skip
        assert first.is_dir()
        (second / "config.json").write_text("{}")
    assert [*Path("runs").iterdir()] == [second]


@pytest.mark.usefixtures("_elsewhere")
def test_an_error_before_training_leaves_no_run_dir(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^trainer\.device"), new_run_dir(config("--device=cuda")) as path:
        train(config("--device=cuda"), path)
    assert not Path("runs").exists()
    Path("runs").write_text("")
    with pytest.raises(InputError, match=r"^run_dir = 'runs/.*': cannot be made: Not a directory$"):
        new_run_dir(config()).__enter__()


@pytest.mark.usefixtures("_elsewhere")
def test_a_new_run_dirs_name_holds_no_colon(config: Any) -> None:
    with new_run_dir(config(task="metarl.envs.bandit:Bandit")) as path:
        assert ":" not in str(path)


def test_a_run_folder_that_cannot_be_made_is_said_in_one_line(config: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError) as error:
            train(config("--iterations", "1"), path)
        assert one_line(error).startswith(f"run_dir = '{path}': cannot be made")
    assert (tmp_path / "file").read_text() == ""


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_lock_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "target")
    (tmp_path / "target").write_bytes(b"kept")
    with pytest.raises(OSError, match="Is a link"), locked_folder(tmp_path):
        pass
    assert (tmp_path / "target").read_bytes() == b"kept"


HOLDER = """
import sys
from pathlib import Path
from metarl.runs.folder import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_is_one_processes_until_it_ends_however_it_ends(killed: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):
            with pytest.raises(InputError) as caught, locked_folder(tmp_path):
                pass
            said = f"run_dir = '{tmp_path}': in use by process {holder.pid} since "
            assert re.fullmatch(re.escape(said) + r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", str(caught.value))
        if killed:
            holder.send_signal(signal.SIGKILL)
        else:
            holder.communicate("")
    assert listed(tmp_path) == ([".lock"] if killed else [])
    with locked_folder(tmp_path):
        assert listed(tmp_path) == [".lock"]
    assert listed(tmp_path) == []


COUNTER = """
import sys, time
from pathlib import Path
from metarl.core.errors import InputError
from metarl.runs.folder import locked_folder
folder, done = Path(sys.argv[1]), 0
while done < 150:
    try:
        with locked_folder(folder):
            count = folder / "count"
            number = int(count.read_text())
            time.sleep(0.0005)
            count.write_text(str(number + 1))
            done += 1
    except InputError:
        pass
"""


def test_processes_that_take_turns_never_have_the_folder_together(tmp_path: Path) -> None:
    """The lock's file is deleted at each end. No process may hold the deleted file while another holds the new one."""
    (tmp_path / "count").write_text("0")
    commands = [[sys.executable, "-c", COUNTER, str(tmp_path)]] * 3
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "450"
    assert listed(tmp_path) == ["count"]
