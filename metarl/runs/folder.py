"""Makes the folder of a run and locks it for one process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from metarl.core.errors import InputError
from metarl.core.files import (
    LARGEST_TEXT,
    made_folder,
    read_file,
    remove_unfinished,
    require_replaceable,
    shown,
    write_error,
)
from metarl.runs import checkpoint
from metarl.runs.config import RunConfig, resume_command

LOCK = ".lock"


@contextlib.contextmanager
def new_run_dir(config: RunConfig, start: Path = Path()) -> Iterator[Path]:
    """Makes the folder runs/<task>-<agent>-<date>-<time>-seed<seed> in `start`.

    If it exists, a number is appended: no other process gets the same folder. If it is empty at the end, it is removed.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.task_name}-{config.agent_name}-{stamp}-seed{config.trainer.seed}".replace(":", ".")
    with contextlib.ExitStack() as made:
        for number in range(1000):
            path = start / "runs" / (name if number == 0 else f"{name}-{number}")
            try:
                made.enter_context(made_folder(path, exist_ok=False))
            except FileExistsError:
                continue
            except OSError as error:
                raise write_error(f"run_dir = {str(shown(path))!r}: cannot be made", error) from None
            yield path
            return
    raise InputError(
        f"run_dir = 'runs/{name}': cannot be made: it exists, and so do 999 with a number appended; use --run-dir"
    )


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Makes the folder and locks it for this process. Unfinished files of a killed process are removed.

    Raises:
        InputError: it cannot be made, or another process has locked it.
        WriteError: the disk is full.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(made_folder(run_dir))
            held.enter_context(locked_folder(run_dir))
        except OSError as error:
            raise write_error(f"run_dir = {str(shown(run_dir))!r}: cannot be made", error) from None
        remove_unfinished(run_dir)
        remove_unfinished(run_dir / "checkpoints")
        yield


def what_is_left(run_dir: Path) -> str:
    """A message on the checkpoint from which a run that ended can be resumed."""
    try:
        newest = checkpoint.latest(run_dir).iteration
        command = resume_command(run_dir)
    except InputError:
        return "no checkpoint was saved before"
    folder = checkpoint.list_checkpoints(run_dir)[newest]
    return f"the last good checkpoint is {shown(folder)}; {command} goes on from it"


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Locks `folder` for this process. The lock of a killed process has no effect.

    Raises:
        InputError: another process has locked it. The message names the process and the time.
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
        with contextlib.suppress(OSError):  # the lock also holds on a full disk, without this text
            path.write_text(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        yield
    finally:
        # The file is deleted before it is unlocked. A process that opened it earlier then locks a deleted file. It
        # detects that, and makes a new file.
        path.unlink(missing_ok=True)
        lock.release()


def _content(path: Path) -> str:
    try:
        return read_file(path, largest=LARGEST_TEXT).decode(errors="replace").strip()
    except OSError:
        return ""
