"""Checkpoints that are complete or absent: `checkpoints/iteration_000100/{state.pt,manifest.json}`.

A checkpoint is written into a temporary folder, the manifest with its SHA-256 sums last. One rename puts the folder in
place. Loading checks every byte and never runs code (`weights_only=True`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from metarl import __version__
from metarl.core.errors import InputError, RunError, one_line
from metarl.core.files import (
    UNFINISHED,
    parse_json,
    read_file,
    remove,
    remove_unfinished,
    sync_folder,
    write_durably,
    write_error,
)
from metarl.core.nonfinite import nonfinite_tensors
from metarl.core.trees import tensors_in

FORMAT_VERSION = 1
STATE, MANIFEST = "state.pt", "manifest.json"

State = dict[str, Any]
"""Tensors, numbers, strings, and lists, tuples and dicts of them."""
Manifest = dict[str, Any]
"""JSON-ready entries; `Checkpoint` lists them."""


class CheckpointError(InputError):
    """A checkpoint that cannot be used, with the reason in one line."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        iteration: iterations done when it was written.
        state: the `state` passed to `save`, with tensors on the CPU.
        manifest: `format_version`, `metarl_version`, `iteration`, `files`, `parameters_sha256`, `config` and `extra`.
        skipped: set by `latest`: the reasons why newer checkpoints could not be used, newest first.
    """

    iteration: int
    state: State
    manifest: Manifest
    skipped: tuple[str, ...] = ()


def save(
    run_dir: Path,
    iteration: int,
    *,
    state: Mapping[str, object],
    parameters: Mapping[str, Tensor],
    config: Mapping[str, object],
    extra: Mapping[str, object] | None = None,
) -> Path:
    """Writes one checkpoint. It becomes visible when it is complete.

    Args:
        run_dir: the run folder.
        iteration: iterations done, >= 0. An intact checkpoint of the same iteration is kept; a damaged one is replaced.
        state: tensors, numbers, strings, and lists, tuples and dicts of them.
        parameters: the meta-parameters, for `parameters_sha256` in the manifest.
        config: the settings that the results depend on, JSON-ready, by dotted name. `load` compares them.
        extra: more JSON-ready entries for the manifest.

    Returns:
        The checkpoint's folder.

    Raises:
        WriteError: the disk is full; earlier checkpoints are intact.
        InputError: the folder cannot be made or is not writable.
        ValueError: loading would refuse a part of `state`, or a tensor is not finite.
    """
    _require_finite(state=state, parameters=parameters)
    data = _serialise(state)
    manifest = {
        "format_version": FORMAT_VERSION,
        "metarl_version": __version__,
        "iteration": iteration,
        "files": {STATE: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}},
        "parameters_sha256": parameters_sha256(parameters),
        "config": dict(config),
        "extra": dict(extra or {}),
    }
    manifest["manifest_sha256"] = manifest_sha256(manifest)
    parent = Path(run_dir) / "checkpoints"
    target, contents = parent / _name(iteration), {STATE: data, MANIFEST: _pretty(manifest)}
    if target.exists() and _is_whole(target):
        return target
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(parent)
        _place(target, contents)
    except OSError as error:
        raise _not_saved(error, parent, iteration, sum(map(len, contents.values()))) from None
    return target


def load(path: Path, *, config: Mapping[str, object] | None = None) -> Checkpoint:
    """Reads and verifies one checkpoint folder.

    Args:
        path: the folder.
        config: the settings that the checkpoint must have, as given to `save`. A setting that only one of the two has
            is not compared.

    Raises:
        CheckpointError: incomplete, damaged, of a newer format or another configuration, or refused. The message has
            the file and the reason.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}: {what}; a checkpoint is a folder with {STATE} and {MANIFEST}")
    try:
        manifest = _read_manifest(path)
        _require_same(path, manifest, config or {})
        contents = {name: _read_verified(path, name, expected) for name, expected in manifest["files"].items()}
        state = _read_state(path, contents[STATE])
    except CheckpointError:
        raise
    except Exception as error:  # a malicious file can make its reader raise anything
        raise CheckpointError(f"{path}: cannot be read: {one_line(repr(error))}") from error
    return Checkpoint(manifest["iteration"], state, manifest)


def list_checkpoints(run_dir: Path) -> dict[int, Path]:
    """The checkpoint folders of a run by iteration, oldest first, damaged ones included."""
    parent = Path(run_dir) / "checkpoints"
    try:
        folders = list(parent.iterdir()) if parent.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{parent}: cannot be read: {error.strerror}") from error
    numbers = ((re.fullmatch(r"iteration_([0-9]{6,})", folder.name), folder) for folder in folders)
    found = {int(match[1]): folder for match, folder in numbers if match}
    return {iteration: found[iteration] for iteration in sorted(found) if found[iteration].name == _name(iteration)}


def latest(
    run_dir: Path, *, config: Mapping[str, object] | None = None, use: Callable[[Path, Checkpoint], None] | None = None
) -> Checkpoint:
    """The newest checkpoint that can be used; `skipped` has the reasons why newer ones cannot.

    Args:
        run_dir: the run folder.
        config: as in `load`.
        use: called with each checkpoint that `load` accepts; it raises CheckpointError if it cannot use the checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    skipped: list[str] = []
    for folder in reversed(list_checkpoints(run_dir).values()):
        try:
            found = load(folder, config=config)
            if use is not None:
                use(folder, found)
            return replace(found, skipped=tuple(skipped))
        except CheckpointError as error:
            skipped.append(str(error))
    reasons = f": {'; '.join(skipped)}" if skipped else ""
    raise CheckpointError(f"{run_dir}: holds no {'usable ' if skipped else ''}checkpoint{reasons}")


def prune(run_dir: Path, keep_last: int, *, newest: int | None = None, keep: Collection[int | None] = ()) -> None:
    """Deletes old checkpoints.

    Args:
        run_dir: the run folder.
        keep_last: how many of the newest stay, >= 1.
        newest: the iteration from which `keep_last` is counted back; None = the last. Later checkpoints are those
            that a resumed run could not use; they stay until the run saves them again.
        keep: other iterations that stay.

    Raises:
        ValueError: keep_last is below 1.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last = {keep_last}: must be >= 1")
    found = list_checkpoints(run_dir)
    counted = [iteration for iteration in found if newest is None or iteration <= newest]
    for iteration in counted[:-keep_last]:
        if iteration not in keep:
            _discard(found[iteration])


def parameters_sha256(parameters: Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and bytes. It does not depend on the parameters' device and order."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name].detach().cpu().contiguous()
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _require_finite(**trees: Mapping[str, object]) -> None:
    bad = next(nonfinite_tensors(trees), None)
    if bad is not None:
        raise ValueError(f"{bad} is not finite: a run cannot be resumed from it")


def _serialise(state: Mapping[str, object]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("state may hold only tensors, numbers, strings, lists, tuples and dicts") from error
    return data


def _place(target: Path, contents: Mapping[str, bytes]) -> None:
    """Writes the files in order into a temporary folder, then renames it to `target`."""
    temporary = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
    try:
        temporary.chmod(0o755)
        for file, data in contents.items():
            descriptor = os.open(temporary / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                write_durably(descriptor, data)
            finally:
                os.close(descriptor)
        sync_folder(temporary)
        if os.path.lexists(target):
            _discard(target)
        temporary.replace(target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _discard(folder: Path) -> None:
    """Deletes `folder`. If the process is killed meanwhile, no partial checkpoint has its name."""
    aside = folder.with_name(f"{UNFINISHED}{folder.name}")
    folder.replace(aside)
    remove(aside)


def _name(iteration: int) -> str:
    return f"iteration_{iteration:06d}"


def _is_whole(path: Path) -> bool:
    try:
        load(path)
    except CheckpointError:
        return False
    return True


def _not_saved(error: OSError, parent: Path, iteration: int, size: int) -> InputError | RunError:
    space = ""
    with contextlib.suppress(OSError):
        space = f" (needs {size:,} bytes, {shutil.disk_usage(parent).free:,} are free)"
    return write_error(f"{parent / _name(iteration)}: cannot be saved", error, space)


def _read_manifest(path: Path) -> Manifest:
    data = _read(path, MANIFEST)
    try:
        manifest: Manifest = parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged: {MANIFEST} is not JSON: {error}") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version is None or not _is_count(version):
        raise CheckpointError(f"{path}: {MANIFEST} has no format_version; it is not a metarl checkpoint")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format {version}, newer than {FORMAT_VERSION}, the newest that metarl {__version__} reads; "
            "upgrade metarl"
        )
    if manifest.get("manifest_sha256") != manifest_sha256(manifest):
        raise CheckpointError(f"{path}: is damaged: {MANIFEST} does not match its own manifest_sha256")
    files = manifest.get("files")
    if not isinstance(files, dict) or STATE not in files or not _is_count(manifest.get("iteration")):
        raise CheckpointError(f"{path}: {MANIFEST} lists no {STATE} or no iteration")
    if not all(isinstance(manifest.get(key, {}), dict) for key in ("config", "extra")):
        raise CheckpointError(f"{path}: {MANIFEST} has no settings where they should be")
    if re.fullmatch(r"iteration_\d+", path.name) and path.name != _name(manifest["iteration"]):
        raise CheckpointError(f"{path}: holds iteration {manifest['iteration']}")
    return manifest


def _require_same(path: Path, manifest: Manifest, config: Mapping[str, object]) -> None:
    found: Mapping[str, object] = manifest.get("config", {})
    for setting in sorted(config.keys() & found.keys()):
        if found[setting] != config[setting]:
            other = f"{setting} = {found[setting]!r}, the run's is {config[setting]!r}"
            raise CheckpointError(f"{path}: is of another configuration: {other}")


def _read_verified(path: Path, name: str, expected: object) -> bytes:
    data = _read(path, name)
    if not isinstance(expected, dict) or not _is_count(expected.get("bytes")):
        raise CheckpointError(f"{path}: {MANIFEST} gives no size and hash for {one_line(name)}")
    if len(data) != expected["bytes"]:
        what = "is truncated" if len(data) < expected["bytes"] else "is too long"
        raise CheckpointError(f"{path}: is damaged: {name} {what}: {len(data)} of {expected['bytes']} bytes")
    found = hashlib.sha256(data).hexdigest()
    if found != expected.get("sha256"):
        hashes = f"{found[:12]}..., expected {str(expected.get('sha256'))[:12]}..."
        raise CheckpointError(f"{path}: is damaged: {name} has sha256 {hashes}")
    return data


def _read(path: Path, name: str) -> bytes:
    """The bytes of a file in the folder `path`. Names that lead outside the folder are refused."""
    file = path / name
    plain = PurePath(name).name == name and "\\" not in name and name not in {"", ".."}
    try:
        if not plain or file.is_symlink():
            shown = one_line(repr(name))
            raise CheckpointError(f"{path}: {MANIFEST} names {shown}, which leaves the checkpoint's folder; refused")
        data = read_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: has no {one_line(name)}; it is incomplete or not a checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read {one_line(name)}: {error.strerror}") from error
    if not data:
        raise CheckpointError(f"{path}: is damaged: {name} is empty")
    return data


def _read_state(path: Path, data: bytes) -> State:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tensors of kinds that no learner saves
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a malicious file can make its reader raise anything
        reason = "holds more than tensors and plain data" if isinstance(error, pickle.UnpicklingError) else repr(error)
        raise CheckpointError(f"{path}: {STATE} cannot be loaded: {one_line(reason.splitlines()[0])}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: {STATE} holds no state")
    for name, tensor in tensors_in(state):
        kind = _unusual(tensor)
        if kind:
            raise CheckpointError(f"{path}: {STATE}: {one_line(name)} is {kind}, not a plain tensor")
    bad = next(nonfinite_tensors(state), None)
    if bad is not None:
        raise CheckpointError(f"{path}: {STATE}: {one_line(bad)} is not finite")
    return state


def _unusual(tensor: Tensor) -> str:
    """How `tensor` differs from the tensors that learners save; "" for a plain tensor."""
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout is not torch.strided:
        return "sparse"
    return f"on the device {tensor.device}" if tensor.device.type != "cpu" else ""


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def manifest_sha256(manifest: Manifest) -> str:
    """The hash of all entries except "manifest_sha256"; the manifest holds it under that name."""
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(_canonical(rest)).hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _pretty(manifest: Manifest) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()
