"""Writing so that a killed process or a full disk leaves no half of a file, and keeping a folder for one process."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from metarl.errors import InputError, RunError

UNFINISHED = ".unfinished-"
LOCK = ".lock"


class WriteError(RunError):
    """The disk did not take what was written to it: it is full, or broken."""


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` with `data`; whoever reads it meanwhile, or after a crash, sees the old content or the new.

    Raises:
        OSError: the disk is full, or the folder is missing or read-only; `path` is as it was.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{UNFINISHED}{path.name}.", dir=path.parent)
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
    """Writes all of `data` and returns when the disk has it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Returns when the disk has the names of the files in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Deletes what writers left in `folder` that were killed on the way."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says an OSError of the block in one line that names `path`, as `write_error` does."""
    try:
        yield
    except OSError as error:
        raise write_error(f"{path}: cannot be written", error) from None


def write_error(what: str, error: OSError, note: str = "") -> InputError | RunError:
    """`what` and the reason: a `WriteError` if the disk is at fault, an `InputError` if the path is."""
    text = f"{what}: {error.strerror or error}{note}"
    of_the_disk = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    return WriteError(text) if of_the_disk else InputError(text)


@contextlib.contextmanager
def made_folder(path: Path, *, exist_ok: bool = True) -> Iterator[Path]:
    """Makes `path` and its parents; those that are still empty at the end are gone again.

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


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps `folder` for this process; the lock of a process that was killed does not count.

    Raises:
        InputError: another process has it; says which, and since when.
        OSError: no file can be made in it.
    """
    path = folder / LOCK
    holder = _content(path)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        owner = _content(path) or holder or "another process"
        raise InputError(f"run_dir = {str(folder)!r}: in use by {owner}") from None
    try:
        with contextlib.suppress(OSError):  # on a full disk the lock holds without it
            path.write_text(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        yield
    finally:
        # While it is held: who opened this file before and locks it now sees that it has no name, and makes another.
        path.unlink(missing_ok=True)
        lock.release()


def _content(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
