"""Reads and writes files. A killed process or a full disk leaves no half-written file."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from metarl.core.errors import InputError, RunError, require

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
"""Data that `json.dumps` writes."""

LARGEST_TEXT = 2**24  # bytes of a settings file
UNFINISHED = ".unfinished-"


class WriteError(RunError):
    """The disk could not store the data: it is full or broken."""


def read_file(path: Path, *, largest: int | None = None) -> bytes:
    """The content of the regular file `path`.

    Args:
        path: the file, or a link to it.
        largest: the largest size in bytes; None = the machine's memory.

    Raises:
        OSError: the file is missing, not regular, too large or not readable. Reading never waits for a named pipe.
    """
    limit = total_memory() if largest is None else largest
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a name that no file can have
        raise OSError(errno.EINVAL, f"Not a valid file name ({error})") from None
    with os.fdopen(descriptor, "rb") as file:
        _require_regular(os.fstat(file.fileno()))
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > limit else file.read(min(limit, max(size, LARGEST_TEXT)) + 1)
    if max(size, len(data)) > limit:
        raise OSError(errno.EFBIG, f"Has more than {limit:,} bytes")
    return data


def parse_json(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, is nested too deeply, repeats a name in an object, or holds a number that is not
            finite.
    """
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_object(path: Path, *, content: str, unreadable: str = "", largest: int | None = None) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        content: what such a file holds, for the message ("report").
        unreadable: start of the message if the file cannot be read; by default it names the file.
        largest: as in `read_file`.

    Raises:
        InputError: the file cannot be read, is not JSON, or holds something else than an object.
    """
    try:
        value = parse_json(read_file(path, largest=largest))
    except OSError as error:
        raise InputError(f"{unreadable or f'{path}: cannot be read'}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is damaged: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: is damaged: holds no {content}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object has the same name twice")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def total_memory() -> int:
    """The machine's memory in bytes; a huge number if the system does not give it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**63 - 1


def require_replaceable(path: Path) -> None:
    """Raises OSError unless `path` is a regular file or does not exist: links, devices and pipes are not replaced."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except ValueError as error:
        raise OSError(errno.EINVAL, f"Not a valid file name ({error})") from None
    _require_regular(found)


def require_output(path: Path, field: str) -> None:
    """Raises `InputError` if `path`, the value of `field`, cannot be written. Call it before the slow work."""
    require(path.name != "-", field, str(path), "the name of a file, other than -, which many take for standard output")
    try:
        require(path.parent.is_dir() and not path.is_dir(), field, str(path), "a file in a folder that exists")
        require_replaceable(path)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{field} = {str(path)!r}: cannot be written: {error.strerror}") from error


_KINDS = {
    stat.S_IFDIR: (errno.EISDIR, os.strerror(errno.EISDIR)),
    stat.S_IFLNK: (errno.ELOOP, "Is a link, not a regular file"),
    stat.S_IFIFO: (errno.ESPIPE, "Is a named pipe, not a regular file"),
    stat.S_IFSOCK: (errno.ENOTSOCK, "Is a socket, not a regular file"),
    stat.S_IFCHR: (errno.ENOTBLK, "Is a device, not a regular file"),
    stat.S_IFBLK: (errno.ENOTBLK, "Is a device, not a regular file"),
}


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(*_KINDS[stat.S_IFMT(found.st_mode)])


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces the content of `path` with `data`. Readers get the old content or the new one, even after a crash.

    Raises:
        OSError: the disk is full, the folder is missing or read-only, or `path` is not a regular file. It is unchanged.
    """
    require_replaceable(path)
    descriptor, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)  # always a valid name
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # mkstemp makes the file private; a result should be as readable as any other new file.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            write_durably(file.fileno(), data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_durably(descriptor: int, data: bytes) -> None:
    """Writes all of `data` and waits until it is on the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Waits until the names of the files in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Deletes the unfinished files of killed processes in `folder`."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        remove(leftover)


def remove(path: Path) -> None:
    """Deletes the file, link or folder `path`. The target of a link stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError in the block into an error of one line that names `path`, as `write_error` does."""
    try:
        yield
    except OSError as error:
        raise write_error(f"{path}: cannot be written", error) from None


def write_error(what: str, error: OSError, note: str = "") -> InputError | RunError:
    """An error with `what` and the reason: a `WriteError` if the disk is at fault, an `InputError` if the path is."""
    text = f"{what}: {error.strerror or error}{note}"
    of_the_disk = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    return WriteError(text) if of_the_disk else InputError(text)


@contextlib.contextmanager
def made_folder(path: Path, *, exist_ok: bool = True) -> Iterator[Path]:
    """Makes `path` and its parents. At the end, deletes those that it made if they are still empty.

    Raises:
        FileExistsError: it is a file; or a folder, while `exist_ok` is false.
        OSError: it cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    made = missing[1:]
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
        made = missing
        yield path
    finally:
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


_began_in: ContextVar[Path | None] = ContextVar("began_in", default=None)


@contextlib.contextmanager
def beginning_here() -> Iterator[None]:
    """Inside the block, `shown` uses the present working directory, even if a user's code changes it."""
    here = None
    with contextlib.suppress(OSError):  # the working directory is gone
        here = Path.cwd()
    before = _began_in.set(here)
    try:
        yield
    finally:
        _began_in.reset(before)


def shown(path: Path) -> Path:
    """`path` relative to the working directory if it is inside; otherwise unchanged."""
    with contextlib.suppress(OSError):  # the working directory is gone
        folder = _began_in.get() or Path.cwd()
        return path.relative_to(folder) if path.is_relative_to(folder) else path
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
