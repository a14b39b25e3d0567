"""Output that survives a standard stream that is closed, full, without a reader, or limited to ASCII.

`say` and `complain` escape text from tasks, files and settings, so that a terminal does not interpret it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from metarl.core.errors import printable


def say(text: object) -> None:
    """Prints one line on standard output."""
    print(printable(str(text)))


def complain(text: object) -> None:
    """Prints one line on standard error, after the command's name."""
    print(f"metarl: {printable(' '.join(str(text).splitlines()))}", file=sys.stderr)


def complain_at_length(error: BaseException) -> None:
    """Prints the traceback of `error` on standard error."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        print(printable(line), file=sys.stderr)


class Stream:
    """A standard stream that never raises: after its first error, all output is dropped.

    Args:
        stream: the real one; None if it was closed before the command began.

    Attributes:
        lost: the first error, or None.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.lost: OSError | None = None
        self._closed = stream is None
        self._stream: Any = io.StringIO() if stream is None else stream
        self._errors = getattr(stream, "errors", None)
        self._reconfigure("backslashreplace")  # an ASCII terminal gets escapes for other characters

    def write(self, text: str) -> int:
        if self._closed and self.lost is None:
            self.lost = OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self._stream.flush())

    def release(self) -> None:
        """Flushes, and leaves the real stream as it was."""
        self.flush()
        self._reconfigure(self._errors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _reconfigure(self, errors: str | None) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream in a test may have no `reconfigure`
            self._stream.reconfigure(errors=errors)

    def _try(self, action: Callable[[], object]) -> None:
        if self.lost is not None:
            return
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: other code in this process closed it
            self.lost = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
            with contextlib.suppress(OSError, ValueError):  # so that buffered text does not fail again at the exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def lasting_streams() -> Iterator[tuple[Stream, Stream]]:
    """Makes standard output and error `Stream`s. Closed descriptors are opened, so that no file gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out, err
    finally:
        out.release()
        err.release()
        sys.stdout, sys.stderr = before
