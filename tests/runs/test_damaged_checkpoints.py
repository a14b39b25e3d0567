"""A damaged newest checkpoint: the message, and the checkpoint that is used instead.

    python tests/runs/test_damaged_checkpoints.py

prints the table of all cases in markdown. All of them are commands of one real process, started without pytest, whose
handlers would catch what is logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.cli.main import main

TRAIN = (
    "train bandit --run-dir whole --quiet --iterations 6 --checkpoint-every 2 --meta-batch-size 2 --device cpu "
    "--agent.num-trajectories 4 --agent.hidden-sizes 4 --evaluation.num-tasks 9 --evaluation.num-adaptation-steps 1 "
    "--evaluation.no-controls"
)
SENTINEL = "the-payload-ran"


@dataclass(frozen=True)
class Case:
    """`harm` changes the newest checkpoint folder (iteration 6 of 2, 4, 6); `said` is the message after its name."""

    name: str
    harm: Callable[[Path], object]
    said: str
    command: str = "evaluate RUN"
    used: int | None = 4
    anywhere: bool = False


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str
    sentinel: bool


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes the manifest and its own hash."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    del manifest["manifest_sha256"]
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps({**manifest, "manifest_sha256": hashlib.sha256(canonical).hexdigest()}))


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def point_outside(folder: Path) -> None:
    secret = folder.parent.parent / "config.json"
    entry = {"sha256": hashlib.sha256(secret.read_bytes()).hexdigest(), "bytes": secret.stat().st_size}
    rewrite(folder, files={**json.loads((folder / "manifest.json").read_text())["files"], "../../config.json": entry})


class Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, (SENTINEL,)


def boobytrap(folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"parameters": Payload()}, buffer)
    plant(folder, buffer.getvalue())


def boobytrap_plainly(folder: Path) -> None:
    plant(folder, pickle.dumps({"parameters": Payload()}, protocol=2))


def plant(folder: Path, data: bytes) -> None:
    (folder / "state.pt").write_bytes(data)
    rewrite(folder, files={"state.pt": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}})


def reconfigure(folder: Path) -> None:
    rewrite(folder, config={**json.loads((folder / "manifest.json").read_text())["config"], "agent.inner_lr": 0.5})


def damage_all(folder: Path) -> None:
    for path in folder.parent.glob("*/state.pt"):
        cut(path, 10)


def replace_run(folder: Path) -> None:
    """Puts the file of another library in the place of a checkpoint."""
    shutil.rmtree(folder)
    folder.write_bytes(b"PK\x03\x04")


def change(part: Callable[[torch.Tensor], Any]) -> Callable[[Path], None]:
    """Replaces the first parameter by its `part`; the hashes fit."""

    def harm(folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        name = next(iter(state["parameters"]))
        state["parameters"][name] = part(state["parameters"][name])
        buffer = io.BytesIO()
        torch.save(state, buffer)
        plant(folder, buffer.getvalue())

    return harm


def list_file(name: str, **entry: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, files={name: {"sha256": "", "bytes": 1, **entry}} | files_of(folder))


def files_of(folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["files"]
    return files


def in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return harm


RESUME = "train --resume RUN --quiet --iterations 5"
CASES = [
    Case("state.pt truncated", lambda at: cut(at / "state.pt", 10), "is damaged: state.pt is truncated: 10 of "),
    Case("state.pt truncated", lambda at: cut(at / "state.pt", 10), "is damaged: state.pt is truncated: 10", RESUME),
    Case("state.pt empty", lambda at: cut(at / "state.pt", 0), "is damaged: state.pt is empty"),
    Case("state.pt: one bit flipped", lambda at: flip(at / "state.pt"), "is damaged: state.pt has sha256 "),
    Case("state.pt: one bit flipped", lambda at: flip(at / "state.pt"), "is damaged: state.pt has sha256 ", RESUME),
    Case("state.pt missing", lambda at: (at / "state.pt").unlink(), "has no state.pt; it is incomplete"),
    Case("manifest truncated", lambda at: cut(at / "manifest.json", 99), "is damaged: manifest.json is not JSON: "),
    Case("manifest empty", lambda at: cut(at / "manifest.json", 0), "is damaged: manifest.json is empty"),
    Case("manifest: one bit flipped", lambda at: flip(at / "manifest.json"), "is damaged: manifest.json "),
    Case("manifest missing", lambda at: (at / "manifest.json").unlink(), "has no manifest.json; it is incomplete"),
    Case("manifest names a file outside", point_outside, "manifest.json names '../../config.json', which leaves the "),
    Case("state.pt is a link", lambda at: link(at / "state.pt"), "manifest.json names 'state.pt', which leaves the "),
    Case("manifest is a link", lambda at: link(at / "manifest.json"), "manifest.json names 'manifest.json', which "),
    Case("of a newer format", lambda at: rewrite(at, format_version=2), "has format 2, newer than 1, the newest "),
    Case("code in torch's format, hashes fit", boobytrap, "state.pt cannot be loaded: holds more than tensors and "),
    Case("code in a plain pickle, hashes fit", boobytrap_plainly, "state.pt cannot be loaded: holds more than tensors"),
    Case("code, hashes fit", boobytrap, "state.pt cannot be loaded: holds more than tensors and plain data", RESUME),
    Case("of another configuration", reconfigure, "is of another configuration: agent.inner_lr = 0.5, the run's is"),
    Case("of another configuration", reconfigure, "is of another configuration: agent.inner_lr = 0.5, the", RESUME),
    Case("parameters of NaN", change(lambda tensor: tensor * torch.nan), "state.pt: parameters.logits."),
    Case("parameters of NaN", change(lambda tensor: tensor * torch.nan), "state.pt: parameters.logits.", RESUME),
    Case("complex parameters", change(lambda tensor: tensor + 0j), "is of another learner, or of an older version of "),
    Case("parameters of float64", change(torch.Tensor.double), "is of another learner, or of an older version of "),
    Case("sparse parameters", change(torch.Tensor.to_sparse), "state.pt: parameters.logits.layers.0.weight is sparse,"),
    Case("meta parameters", change(lambda tensor: tensor.to("meta")), "state.pt: parameters.logits.layers.0.weight is"),
    Case("parameters of another shape", change(lambda tensor: tensor[:1]), "is of another learner, or of an older "),
    Case("parameters that are no tensors", change(lambda tensor: "x"), "is of another learner, or of an older version"),
    Case("a parameter of 10^12 numbers", change(lambda tensor: torch.zeros(1).expand(10**12)), "cannot be read: "),
    Case("env_steps is a word", lambda at: rewrite(at, extra={"env_steps": "x", "wall_s": 1.0}), "its manifest has n"),
    Case("env_steps is a word", lambda at: rewrite(at, extra={"env_steps": "x", "wall_s": 1.0}), "its manifes", RESUME),
    Case("env_steps is true", lambda at: rewrite(at, extra={"env_steps": True, "wall_s": 1.0}), "its manifest has no "),
    Case("wall_s is negative", lambda at: rewrite(at, extra={"env_steps": 1, "wall_s": -1.0}), "its manifest has n"),
    Case("iteration is 6.0", lambda at: rewrite(at, iteration=6.0), "manifest.json lists no state.pt or no iteration"),
    Case("iteration is true", lambda at: rewrite(at, iteration=True), "manifest.json lists no state.pt or no iteratio"),
    Case("files is a list", lambda at: rewrite(at, files=[]), "manifest.json lists no state.pt or no iteration"),
    Case("bytes is negative", list_file("a", bytes=-1), "has no a; it is incomplete or not a checkpoint"),
    Case("a name with NUL", list_file("a\0b"), "cannot read a\\x00b: Not a valid file name (embedded null byte)"),
    Case("a name that is a surrogate", list_file("\ud800"), "cannot read \\ud800: Not a valid file name ('utf-8'"),
    Case("a name of 5,000 letters", list_file(5000 * "a"), f"cannot read {300 * 'a'} ...: File name too long"),
    Case("an absolute name", list_file("/etc/passwd"), "manifest.json names '/etc/passwd', which leaves the checkpoin"),
    Case("manifest is nested deeply", lambda at: (at / "manifest.json").write_text(99999 * "["), "is damaged: manifes"),
    Case("a named pipe for a manifest", in_place_of("manifest.json", os.mkfifo), "cannot read manifest.json: Is a nam"),
    Case("a named pipe for a state", in_place_of("state.pt", os.mkfifo), "cannot read state.pt: Is a named pipe, not"),
    Case("a folder for a state", in_place_of("state.pt", Path.mkdir), "cannot read state.pt: Is a directory"),
    Case("a file of another library", replace_run, "is a file; a checkpoint is a folder with state.pt and manifest"),
    Case("a damaged one asked for", lambda at: flip(at / "state.pt"), "is damaged: state.pt has sha256 ",
         "evaluate RUN --checkpoint 6", used=None),
    Case("an undamaged one asked for", lambda at: flip(at / "state.pt"), "", "evaluate RUN --checkpoint 2", used=2),
    Case("all damaged", damage_all, "RUN: holds no usable checkpoint: RUN/checkpoints/iteration_000006: is damaged: ",
         used=None, anywhere=True),
    Case("resumed with another setting", lambda at: None, "agent.inner_lr = 0.5: must be 1.0, as in the run RUN",
         f"{RESUME} --agent.inner-lr 0.5", used=None, anywhere=True),
]  # fmt: skip


def call(argv: list[str]) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    said = err.getvalue().replace(f"{Path.cwd()}/", "")  # run folders are named by their whole path
    return Outcome(code, out.getvalue(), said, Path(SENTINEL).exists())


def run_all(folder: Path) -> list[Outcome]:
    """The outcome of every case, and of evaluating the undamaged run's iterations 2 and 4, in this order."""
    os.chdir(folder)
    assert call(TRAIN.split()) == Outcome(0, "", "", sentinel=False)
    outcomes = []
    for case in CASES:
        shutil.copytree("whole", "RUN")
        case.harm(Path("RUN/checkpoints/iteration_000006"))
        outcomes.append(call(case.command.split()))
        shutil.rmtree("RUN")
    return [*outcomes, *(call(["evaluate", "whole", "--checkpoint", str(iteration)]) for iteration in (2, 4))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[Outcome]:
    command = [sys.executable, __file__, "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return [Outcome(**plain) for plain in json.loads(done.stdout)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case.name} - {case.command}" for case in CASES])
def test_damage_is_named_and_the_newest_valid_checkpoint_is_used(number: int, outcomes: list[Outcome]) -> None:
    case, outcome, of_iteration = CASES[number], outcomes[number], dict(zip((2, 4), outcomes[-2:], strict=True))
    assert not outcome.sentinel
    assert outcome.code == (2 if case.used is None else 0)
    if not case.said:
        assert outcome.err == ""
    else:
        (line,) = outcome.err.splitlines()
        begin = "" if case.anywhere else "RUN/checkpoints/iteration_000006: "
        assert line.startswith(("metarl: " if case.used is None else "") + begin + case.said)
        assert line.endswith(f"; going on from iteration {case.used}") == (case.used is not None)
    if case.command.startswith("evaluate") and case.used is not None:
        assert outcome.out == of_iteration[case.used].out != ""
    assert of_iteration[2].out != of_iteration[4].out


@pytest.mark.usefixtures("outcomes")
def test_a_damaged_checkpoint_from_a_shell(folder: Path, tmp_path: Path) -> None:
    """A separate process, with its output in a file. It must end like an undamaged run."""
    shutil.copytree(folder / "whole", tmp_path / "whole")
    state = tmp_path / "whole" / "checkpoints" / "iteration_000006" / "state.pt"
    whole = state.read_bytes()
    cut(state, 10)
    with (tmp_path / "log").open("w") as log:
        command = [str(Path(sys.executable).with_name("metarl")), "train", "--resume", "whole"]
        done = subprocess.run(command, cwd=tmp_path, stdout=log, stderr=subprocess.PIPE, text=True, timeout=120)
    said = f"state.pt is truncated: 10 of {len(whole)} bytes; going on from iteration 4\n"
    assert (done.returncode, done.stderr.replace(f"{tmp_path}/", "")) == (
        0,
        f"whole/checkpoints/iteration_000006: is damaged: {said}",
    )
    assert state.read_bytes() == whole


if __name__ == "__main__":
    if sys.argv[1:2] == ["--json"]:
        print(json.dumps([asdict(outcome) for outcome in run_all(Path(sys.argv[2]))]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            found = run_all(Path(temporary))
            os.chdir("/")
        print("| newest checkpoint, iteration 6 | command | said on standard error | used |\n|---|---|---|---|")
        for case, outcome in zip(CASES, found, strict=False):
            used = "none, exit code 2" if case.used is None else f"iteration {case.used}"
            print(f"| {case.name} | `metarl {case.command}` | {outcome.err.strip()} | {used} |")
