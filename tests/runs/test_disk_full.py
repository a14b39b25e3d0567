"""A run ends with one line when its disk is full, and can be resumed when there is space.

    unshare -rm python tests/runs/test_disk_full.py FOLDER checkpoint events picture limit

runs these cases in one real process and prints what became of them in JSON; the disk is a tmpfs in a mount namespace or
a limit on the size of a file.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from metarl.cli.main import main
from metarl.runs import checkpoint
from metarl.runs.tracking import read_metrics

COMMON = (
    "train bandit --quiet --meta-batch-size 2 --device cpu --agent.num-trajectories 2 --iterations 6 "
    "--checkpoint-every 2 --evaluation.num-tasks 2 --evaluation.num-adaptation-steps 1 --evaluation.no-controls"
)
FULL, LIMIT = "No space left on device", "File too large"


@dataclass(frozen=True)
class Case:
    """`kib` KiB of space (or at most so many in one file) are not enough for the file that `said` names."""

    flags: str
    kib: int
    said: str
    last_good: int
    mounted: bool = True


EVENTS = r"run/events\.out\S*: cannot be written"
CASES = {
    "checkpoint": Case(
        "--agent.hidden-sizes 256 256",
        700,
        rf"run/checkpoints/iteration_000006: cannot be saved: {FULL} \(needs 2\d\d,\d{{3}} bytes, [\d,]+ are free\)",
        4,
    ),
    "events": Case("--agent.hidden-sizes 4 --evaluation.every 5", 60, f"{EVENTS}: {FULL}", 5),
    "picture": Case("--agent.hidden-sizes 4", 120, rf"run/adaptation\.png: cannot be written: {FULL}", 6),
    "limit": Case("--agent.hidden-sizes 4 --evaluation.every 5", 40, f"{EVENTS}: {LIMIT}", 5, mounted=False),
}


@dataclass(frozen=True)
class Outcome:
    codes: list[int]
    errors: list[str]
    sha256: list[str]
    metrics: list[list[object]]
    reports: list[object]


def call(command: str) -> tuple[int, str]:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        return main(command.split()), err.getvalue()


@contextlib.contextmanager
def space(case: Case, folder: Path, kib: int | None) -> Iterator[None]:
    size = "100m" if kib is None else f"{kib}k"
    if case.mounted:
        mounted = "remount," if folder.is_mount() else ""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"{mounted}size={size}", "tmpfs", str(folder)], check=True)
        yield
    else:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard if kib is None else kib * 1024, hard))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def run(case: Case, folder: Path) -> Outcome:
    """Trains until the disk is full, resumes with more space, and trains once without interruption."""
    disk, whole = folder / "disk", folder / "whole"
    disk.mkdir(parents=True)
    with space(case, disk, case.kib):
        done = [call(f"{COMMON} {case.flags} --run-dir {disk}/run"), call(f"train --quiet --resume {disk}/run")]
    with space(case, disk, None):
        done += [call(f"train --quiet --resume {disk}/run"), call(f"{COMMON} {case.flags} --run-dir {whole}")]
        found = [disk / "run", whole]
        return Outcome(
            [code for code, _ in done],
            [error.replace(f"{disk}/", "") for _, error in done],
            [str(checkpoint.latest(path).manifest["parameters_sha256"]) for path in found],
            [[untimed(row) for row in read_metrics(path)] for path in found],
            [json.loads((path / "adaptation.json").read_text()) for path in found],
        )


def untimed(row: dict[str, object]) -> dict[str, object]:
    timed = {"wall_s", *(tag for tag in row if tag.startswith("time/") and tag != "time/env_steps")}
    return {tag: value for tag, value in row.items() if tag not in timed}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("disk")
    namespace = ["unshare", "-rm"]
    try:
        subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        namespace = []
    names = [name for name, case in CASES.items() if namespace or not case.mounted]
    command = [*namespace, sys.executable, __file__, str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    return {name: Outcome(**plain) for name, plain in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", CASES)
def test_a_full_disk_ends_the_run_with_one_line_and_the_run_goes_on_once_there_is_space(
    name: str, outcomes: dict[str, Outcome]
) -> None:
    if name not in outcomes:
        pytest.skip("no file system can be mounted here")
    case, outcome = CASES[name], outcomes[name]
    assert outcome.codes == [1, 1, 0, 0], outcome.errors
    left = f"run/checkpoints/iteration_00000{case.last_good}; metarl train --resume run goes on from it"
    # The second attempt writes one more event file, and may end earlier.
    anything = rf"run/\S+: cannot be \S+: ({FULL}|{LIMIT}).*"
    for error, said in zip(outcome.errors, [case.said, anything], strict=False):
        assert re.fullmatch(rf"metarl: {said}; the last good checkpoint is {left}\n", error), error
    assert outcome.errors[2:] == ["", ""]
    assert outcome.sha256[0] == outcome.sha256[1]
    assert outcome.metrics[0] == outcome.metrics[1]
    assert outcome.reports[0] == outcome.reports[1]


if __name__ == "__main__":
    print(json.dumps({name: asdict(run(CASES[name], Path(sys.argv[1]) / name)) for name in sys.argv[2:]}))
