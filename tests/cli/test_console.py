"""Closed or full standard streams, limited terminals, and names that a terminal would interpret."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from metarl.cli.console import Stream, say
from metarl.cli.main import main
from metarl.core.errors import one_line, printable

TINY = [
    "--iterations=3",
    "--meta-batch-size=2",
    "--agent.num-trajectories=2",
    "--agent.hidden-sizes=4",
    "--evaluation.num-tasks=2",
    "--evaluation.num-adaptation-steps=1",
    "--evaluation.no-controls",
    "--device=cpu",
    "--run-dir=run",
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


ENDED = {"full": "No space left on device", "left": "", "shut": "closed file", "absent": "Bad file descriptor"}


@pytest.fixture
def ended(request: pytest.FixtureRequest) -> Iterator[TextIO | None]:
    """A stream that takes no output: a full disk, a pipe without a reader, closed in this process or before it."""
    if request.param == "full":
        stream = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", encoding="utf-8")
    elif request.param == "left":
        reading, writing = os.pipe()
        os.close(reading)
        stream = os.fdopen(writing, "w", encoding="utf-8")
    elif request.param == "shut":
        stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
        stream.close()
    else:
        yield None
        return
    yield stream
    stream.close()  # fails if text is left that cannot be written


@pytest.mark.parametrize(("ended", "reason"), ENDED.items(), indirect=["ended"])
def test_a_run_is_finished_and_kept_whatever_becomes_of_standard_output(
    ended: TextIO | None, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", ended)
    assert main(["train", "bandit", *TINY]) == 1
    assert sys.stdout is ended
    assert Path("run/adaptation.json").is_file()
    said = (
        f"metarl: standard output cannot be written: .*{reason}.*; the rest of the output is lost\n" if reason else ""
    )
    assert re.fullmatch(said, capsys.readouterr().err)


@pytest.mark.parametrize("ended", ENDED, indirect=True)
def test_the_exit_code_survives_a_standard_error_that_ended(
    ended: TextIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", ended)
    assert main(["trian"]) == 2


@pytest.mark.parametrize(
    ("ended", "argv", "code"),
    [("full", ["list"], 1), ("full", ["train", "bandit", "--help"], 1), ("full", ["trian"], 2)],
    indirect=["ended"],
)
def test_what_could_not_be_printed_is_no_success(
    ended: TextIO, argv: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", ended)
    assert main(argv) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_closed_descriptors_are_taken_before_a_file_gets_their_numbers(tmp_path: Path) -> None:
    code = (
        "import os, sys; from metarl.cli.console import lasting_streams\n"
        "with lasting_streams(): print(os.open('file', os.O_CREAT), file=open('number', 'w'))"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    subprocess.run(f"{sys.executable} script.py <&- >&- 2>&-", shell=True, check=True)
    assert int((tmp_path / "number").read_text()) > 2


def test_an_ascii_terminal_is_shown_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    stream = Stream(io.TextIOWrapper(buffer, encoding="ascii"))
    monkeypatch.setattr(sys, "stdout", stream)
    say("Größe")
    stream.release()
    assert buffer.getvalue() == b"Gr\\xf6\\xdfe\n"
    assert stream.errors == "strict"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ünïcode 日本 $x_1$ [bold] \\", "plain text, ünïcode 日本 $x_1$ [bold] \\"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x1b]52;c;ZXZpbA==\x07", "\\x1b]52;c;ZXZpbA==\\x07"),
        ("a\nb\tc\r\x00\x9b", "a\\nb\\tc\\r\\x00\\x9b"),
        ("\u202e\u2066\u200b\u2028", "\\u202e\\u2066\\u200b\\u2028"),
        ("\udce9\U000e0041", "\\udce9\\U000e0041"),
    ],
)
def test_text_is_shown_not_interpreted(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(text) == shown
    assert one_line(f"x{text}").isprintable()
    say(text)
    assert capsys.readouterr().out == f"{shown}\n"


HOSTILE = r"""
from dataclasses import dataclass
from metarl.envs.bandit import Arms, Bandit

class Named(Arms):
    def __str__(self):
        return "\x1b$\\frac{$[/]" + f"{self.probabilities[0]:.2f}"

@dataclass(frozen=True)
class Family(Bandit):
    note: str = "[/bold] \x1b]52;c;eA==\x07 <b> | `x` $\\frac{$"
    def all_tasks(self, split):
        return [Named((p, 1 - p)) for p in (0.25, 0.75)]
    def sample(self, num_tasks, rng, *, split="train"):
        return [self.all_tasks(split)[i] for i in rng.integers(2, size=num_tasks)]
"""


def test_hostile_names_of_tasks_and_settings_do_no_harm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_family.py").write_text(HOSTILE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    flags = [*TINY, "--task.num-arms=2", "--evaluation.controls", "--evaluation.every=1", "--evaluation.num-tasks=4"]
    flags.remove("--evaluation.no-controls")
    assert main(["train", "hostile_family:Family", *flags]) == 0
    assert main(["train", "hostile_family:Family", "--resume", "run", "--iterations", "4"]) == 0
    assert main(["evaluate", "run", "--trust"]) == 0
    assert main(["plot", "run", "--out", "a.svg"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "\\x1b$\\frac{$[/]0.25" in said.out
    assert all(line.isprintable() for line in said.out.splitlines())
    assert "\\x1b$\\frac{$[/]0.25" in Path("a.svg").read_text(encoding="utf-8")


def test_an_error_is_whole_on_a_narrow_terminal() -> None:
    command = [sys.executable, "-m", "metarl", "train", "bandit", "--evaluation.num-adaptation-stepsss", "3"]
    env = {**os.environ, "COLUMNS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    said = "--evaluation.num-adaptation-stepsss: unknown; did you mean --evaluation.num-adaptation-steps?"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"metarl: {said}\n")


def test_a_deleted_working_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["list"]) == 1
    said = "the working directory does not exist any more; change into one that does"
    assert capsys.readouterr().err == f"metarl: {said}\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
        (SystemExit(0), 1, r"ended by SystemExit\(0\) before it was done"),
        (MemoryError(), 1, "out of memory: ; lower trainer.meta_batch_size, agent.num_trajectories, .*"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            1,
            "out of memory: .*can't.*; lower .*hidden_sizes.*",
        ),
        (OSError(errno.EIO, "Input/output error", "a\x1b"), 1, r"OSError: \[Errno 5\] Input/output error: 'a\\x1b'.*"),
    ],
)
def test_what_ends_a_command_is_said_in_one_line(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("metarl.runs.registry.entries", fail)
    assert main(["list"]) == code
    *above, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"metarl: {said}", last)
    assert above[:1] == (["Traceback (most recent call last):"] if isinstance(error, SystemExit) else [])


def test_an_interrupt_that_a_module_took_for_its_own_failure_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("numpy.core failed to import") from error

    monkeypatch.setattr("metarl.runs.registry.entries", fail)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "metarl: stopped by SIGINT\n"


def test_an_interrupt_in_the_first_second_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "tyro.py").write_text("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)")
    command, env = [sys.executable, "-m", "metarl", "list"], {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "metarl: stopped by SIGINT\n")


@pytest.mark.parametrize(("backend", "kept"), [("nonsense", "agg"), ("svg", "svg")])
def test_pictures_need_no_backend(backend: str, kept: str, tmp_path: Path) -> None:
    code = (
        "import os, metarl.report.plots, matplotlib; from pathlib import Path\n"
        "metarl.report.plots.save_figure(metarl.report.plots.Figure(), Path('a.png'))\n"
        "print(os.environ['MPLBACKEND'], matplotlib.rcParams._get('backend'))"
    )
    env = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.split()[0] == backend
    assert (done.stdout.split()[1] == "svg") == (kept == "svg")
