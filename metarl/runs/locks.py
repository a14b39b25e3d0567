"""Keeps a folder for one process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from metarl.core.errors import InputError
from metarl.core.files import LARGEST_TEXT, read_file, require_replaceable, shown

LOCK = ".lock"


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps `folder` for this process; the lock of a process that was killed does not count.

    Raises:
        InputError: another process has it; says which, and since when.
        OSError: no file can be made in it.
    """
    path = folder / LOCK
    require_replaceable(path)
    holder = _content(path)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        owner = _content(path) or holder or "another process"
        raise InputError(f"run_dir = {str(shown(folder))!r}: in use by {owner}") from None
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
        return read_file(path, largest=LARGEST_TEXT).decode(errors="replace").strip()
    except OSError:
        return ""
