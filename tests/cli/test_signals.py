"""Real signals to real processes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metarl.runs import checkpoint
from metarl.runs.tracking import read_metrics

METARL = str(Path(sys.executable).parent / "metarl")
TINY = "train bandit --meta-batch-size 2 --agent.num-trajectories 2 --evaluation.num-tasks 2 --run-dir run"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_its_iteration_and_resume_goes_on(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    command = [METARL, *TINY.split(), "--iterations", "1000000", "--checkpoint-every", "1000000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("iteration 3/"):
                break
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert "--resume run goes on" in errors
    assert "adaptation curve" not in output
    saved = checkpoint.latest(tmp_path / "run").iteration
    assert [row["iteration"] for row in read_metrics(tmp_path / "run")] == list(range(1, saved + 1))
    resumed = [METARL, "train", "--resume", "run", "--iterations", str(saved + 2), "--quiet"]
    subprocess.run(resumed, cwd=tmp_path, check=True, timeout=120)
    assert checkpoint.latest(tmp_path / "run").iteration == saved + 2


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN], ids=["foreground", "background"])
def test_a_second_signal_ends_the_run_at_once(before: Any, tmp_path: Path) -> None:
    """The first signal comes in an iteration that takes minutes. (Processes that a shell without job control starts in
    the background ignore SIGINT.)"""
    command = [METARL, *TINY.split(), "--iterations", "9", "--meta-batch-size", "3000", "--task.num-pulls", "2000"]
    kept = signal.signal(signal.SIGINT, before)  # which the run inherits
    try:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, kept)
    with process, contextlib.ExitStack() as ending:
        ending.callback(process.kill)
        assert process.stderr is not None
        while not (tmp_path / "run" / "config.json").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert "press Ctrl-C again to stop now" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
