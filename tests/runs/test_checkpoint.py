from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl.core.errors import InputError
from metarl.core.files import UNFINISHED, WriteError
from metarl.runs.checkpoint import CheckpointError, latest, list_checkpoints, load, parameters_sha256, prune, save

CONFIG = {"agent.inner_lr": 0.1, "agent.hidden_sizes": [4], "trainer.seed": 0}


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def parameters(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((3, 2), value), "bias": torch.tensor([value, -value], dtype=torch.float64)}


def write(run_dir: Path, iteration: int, **extra: Any) -> Path:
    values = parameters(float(iteration))
    state = {"parameters": values, "steps": iteration, "names": ["a", ("b", 1.5)], "optimiser": {"m": values["bias"]}}
    return save(run_dir, iteration, state=state, parameters=values, config=CONFIG, extra=extra)


def rewrite_manifest(path: Path, **changes: Any) -> None:
    manifest = {**json.loads((path / "manifest.json").read_text()), **changes}
    del manifest["manifest_sha256"]
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    manifest["manifest_sha256"] = hashlib.sha256(canonical).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def reason(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path, 100, env_steps=7)
    assert path == tmp_path / "checkpoints" / "iteration_000100"
    assert listed(path) == ["manifest.json", "state.pt"]
    loaded = load(path)
    assert loaded.iteration == 100
    assert (loaded.state["steps"], loaded.state["names"]) == (100, ["a", ("b", 1.5)])
    assert torch.equal(loaded.state["parameters"]["weight"], torch.full((3, 2), 100.0))
    assert loaded.state["optimiser"]["m"].dtype == torch.float64


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    path = write(tmp_path, 5, env_steps=7)
    manifest = json.loads((path / "manifest.json").read_text())
    data = (path / "state.pt").read_bytes()
    assert manifest["format_version"] == 1
    assert manifest["iteration"] == 5
    assert manifest["files"] == {"state.pt": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
    assert manifest["parameters_sha256"] == parameters_sha256(parameters(5.0))
    assert manifest["extra"] == {"env_steps": 7}
    assert manifest["config"] == CONFIG


def test_the_hash_of_parameters_sees_every_difference_and_nothing_else() -> None:
    base = parameters(1.0)
    digest = parameters_sha256(base)
    assert parameters_sha256(dict(reversed(base.items()))) == digest
    assert parameters_sha256({**base, "weight": base["weight"].t().contiguous().t()}) == digest
    assert parameters_sha256({"weight": base["weight"].requires_grad_(), "bias": base["bias"]}) == digest
    different = [
        {**base, "weight": base["weight"].detach().reshape(2, 3)},
        {**base, "bias": base["bias"].view(torch.int64)},
        {**base, "bias": base["bias"] + 1e-15},
        {"weights": base["weight"], "bias": base["bias"]},
        {"weight": base["weight"]},
        {**base, "scalar": torch.tensor(1.0)},
    ]
    assert len({digest, *map(parameters_sha256, different)}) == 7
    assert parameters_sha256({"half": torch.ones(3, dtype=torch.bfloat16), "flag": torch.tensor(True)})


def test_state_that_loading_would_refuse_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="state may hold only tensors"):
        save(tmp_path, 1, state={"learner": io.StringIO}, parameters={}, config={})
    assert list_checkpoints(tmp_path) == {}


@pytest.mark.parametrize("damaged", [False, True])
def test_saving_an_iteration_again_replaces_it_only_if_it_is_damaged(tmp_path: Path, damaged: bool) -> None:
    """Replacing needs two renames. A kill between them would leave no checkpoint."""
    path = write(tmp_path, 3, note="first")
    if damaged:
        (path / "state.pt").write_bytes(b"")
    assert write(tmp_path, 3, note="second") == path
    assert load(path).manifest["extra"] == {"note": "second" if damaged else "first"}
    assert listed(tmp_path / "checkpoints") == ["iteration_000003"]


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_any_flipped_byte_is_noticed(tmp_path: Path, file: str) -> None:
    path = write(tmp_path, 1, note="x")
    whole = (path / file).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 97)):
        if whole[place : place + 1].isspace() and file == "manifest.json":
            continue
        flipped = bytearray(whole)
        flipped[place] ^= 0x01
        (path / file).write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load(path)
    (path / file).write_bytes(whole)
    assert load(path).iteration == 1


def test_each_kind_of_damage_has_its_reason(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    data = (path / "state.pt").read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    (path / "state.pt").write_bytes(flipped)
    assert "is damaged: state.pt has sha256" in reason(path)
    (path / "state.pt").write_bytes(data[:100])
    assert f"is damaged: state.pt is truncated: 100 of {len(data)} bytes" in reason(path)
    (path / "state.pt").write_bytes(data + b"x")
    assert "is damaged: state.pt is too long" in reason(path)
    (path / "state.pt").write_bytes(b"")
    assert "is damaged: state.pt is empty" in reason(path)
    (path / "state.pt").unlink()
    assert "has no state.pt" in reason(path)


def test_each_kind_of_bad_manifest_has_its_reason(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    manifest = path / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[:50])
    assert "is damaged: manifest.json is not JSON" in reason(path)
    manifest.write_text("[1]")
    assert "has no format_version" in reason(path)
    manifest.write_text(text.replace('"iteration": 1', '"iteration": 2'))
    assert "does not match its own manifest_sha256" in reason(path)
    manifest.write_text(text.replace('"format_version": 1', '"format_version": 2'))
    assert "has format 2, newer than 1" in reason(path)
    manifest.write_text("")
    assert "manifest.json is empty" in reason(path)
    manifest.unlink()
    assert "has no manifest.json" in reason(path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "..", "a/b", "a\\b", ""])
def test_a_manifest_cannot_name_files_outside(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 1)
    (path.parent / "outside").write_bytes(b"secret")
    files = json.loads((path / "manifest.json").read_text())["files"]
    rewrite_manifest(path, files={**files, name: {"sha256": "0", "bytes": 6}})
    assert "leaves the checkpoint's folder; refused" in reason(path)


def test_a_linked_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / "state.pt").rename(tmp_path / "elsewhere.pt")
    (path / "state.pt").symlink_to(tmp_path / "elsewhere.pt")
    assert "leaves the checkpoint's folder; refused" in reason(path)


@pytest.mark.parametrize("files", [{}, {"state.pt": {}}, {"state.pt": 3}, []])
def test_a_manifest_must_list_the_state_with_size_and_hash(tmp_path: Path, files: Any) -> None:
    path = write(tmp_path, 1)
    rewrite_manifest(path, files=files)
    assert "manifest.json" in reason(path)


class Payload:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("payload_ran",))


@pytest.mark.parametrize("with_torch", [True, False])
def test_code_in_a_checkpoint_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_torch: bool) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, 1)
    buffer = io.BytesIO()
    torch.save({"x": Payload()}, buffer) if with_torch else pickle.dump({"x": Payload()}, buffer, protocol=2)
    data = buffer.getvalue()
    (path / "state.pt").write_bytes(data)
    rewrite_manifest(path, files={"state.pt": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}})
    assert "state.pt cannot be loaded" in reason(path)
    assert not (tmp_path / "payload_ran").exists()


def test_a_path_that_is_no_checkpoint_is_told_what_one_is(tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    file.write_bytes(b"PK")
    assert "is a file; a checkpoint is a folder" in reason(file)
    assert "does not exist" in reason(tmp_path / "absent")


def test_the_newest_whole_checkpoint_is_the_latest(tmp_path: Path) -> None:
    for iteration in (2, 10, 1_000_000):
        write(tmp_path, iteration)
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert [*list_checkpoints(tmp_path)] == [2, 10, 1_000_000]
    found = [*list_checkpoints(tmp_path).values()]
    assert [path.name for path in found] == ["iteration_000002", "iteration_000010", "iteration_1000000"]
    assert (latest(tmp_path).iteration, latest(tmp_path).skipped) == (1_000_000, ())
    (found[2] / "state.pt").write_bytes(b"")
    (found[1] / "manifest.json").unlink()
    newest = latest(tmp_path)
    assert newest.iteration == 2
    assert ["empty" in newest.skipped[0], "has no manifest.json" in newest.skipped[1]] == [True, True]
    (found[0] / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"holds no usable checkpoint: .*empty; .*manifest.json.*; .*state.pt"):
        latest(tmp_path)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        latest(tmp_path)


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 4):
        write(tmp_path, iteration)
    prune(tmp_path, 2)
    assert listed(tmp_path / "checkpoints") == ["iteration_000003", "iteration_000004"]
    with pytest.raises(ValueError, match="keep_last"):
        prune(tmp_path, 0)


def test_pruning_keeps_what_is_named_and_counts_back_from_where_the_run_is(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 4, 9):
        write(tmp_path, iteration)
    prune(tmp_path, 2, newest=4, keep=[1, None])
    assert [*list_checkpoints(tmp_path)] == [1, 3, 4, 9]


def test_a_checkpoint_of_another_configuration_is_not_used(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert load(path, config={**CONFIG, "agent.new": 1}).iteration == 1
    other = {**CONFIG, "agent.inner_lr": 0.2}
    with pytest.raises(CheckpointError, match=r"another configuration: agent\.inner_lr = 0\.1, the run's is 0\.2$"):
        load(path, config=other)
    with pytest.raises(CheckpointError, match=r"holds no usable checkpoint: .* another configuration"):
        latest(tmp_path, config=other)


def test_a_renamed_checkpoint_is_not_used(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert reason(path.rename(path.with_name("iteration_000002"))).endswith("iteration_000002: holds iteration 1")


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoint_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, failing) if failing == "replace" else (os, failing)), fail)
        with pytest.raises(WriteError) as caught:
            write(tmp_path, 2)
    assert "iteration_000002: cannot be saved: No space left on device (needs " in str(caught.value)
    assert re.search(r" \(needs [\d,]{5,} bytes, [\d,]+ are free\)$", str(caught.value))
    assert listed(tmp_path / "checkpoints") == ["iteration_000001"]
    assert latest(tmp_path).iteration == 1


def test_a_folder_that_cannot_be_made_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"a file")
    with pytest.raises(InputError, match=r"run/checkpoints/iteration_000001: cannot be saved: Not a directory$"):
        write(tmp_path / "run", 1)


def test_leftovers_of_killed_writers_are_removed_by_the_next_save(tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints" / f"{UNFINISHED}x"
    leftover.mkdir(parents=True)
    (leftover / "state.pt").write_bytes(b"half")
    assert list_checkpoints(tmp_path) == {}
    write(tmp_path, 1)
    assert listed(tmp_path / "checkpoints") == ["iteration_000001"]


@pytest.mark.parametrize("kind", ["file", "pipe", "link", "dangling"])
def test_what_stands_in_the_place_of_a_checkpoint_is_replaced_and_nothing_waits(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints" / "iteration_000001"
    place.parent.mkdir()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    with contextlib.ExitStack() as held:
        if kind == "file":
            place.touch()
        elif kind == "pipe":
            os.mkfifo(place)
            held.callback(os.close, os.open(place, os.O_RDWR))  # so no open waits, and the test always ends
        else:
            place.symlink_to(kept if kind == "link" else "absent")
        write(tmp_path, 1)
    assert latest(tmp_path).iteration == 1
    assert listed(tmp_path / "checkpoints") == ["iteration_000001"]
    assert listed(kept) == ["file"]


WRITER = """
import sys, torch
from pathlib import Path
from metarl.runs.checkpoint import latest, save
run_dir = Path(sys.argv[1])
iteration = int(sys.argv[2])
print("ready", flush=True)
while True:
    iteration += 1
    values = {"weight": torch.full((200_000,), float(iteration))}
    save(run_dir, iteration, state=values, parameters=values, config={})
"""


def test_a_killed_writer_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    started = 0
    for wait in (0.0, 0.03):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(started)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while len(list_checkpoints(tmp_path)) <= started:
                assert writer.poll() is None
                time.sleep(0.001)
            time.sleep(wait)
            writer.send_signal(signal.SIGKILL)
        for path in list_checkpoints(tmp_path).values():
            loaded = load(path)
            assert torch.equal(loaded.state["weight"], torch.full((200_000,), float(loaded.iteration)))
        started = latest(tmp_path).iteration
