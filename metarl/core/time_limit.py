"""A time limit for calls of a user's code: `TimeoutError` is raised at the line that hangs.

It uses SIGALRM. It works on POSIX, in the main thread, and for code that returns to Python now and then. Elsewhere
there is no limit.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator


class StillRunningError(BaseException):
    """Raised if the call caught `TimeoutError` and still runs. `except Exception` does not catch it."""


class TimeLimit:
    """While `watching`, raises `TimeoutError` in a call that runs longer than `seconds` after `restart`.

    If the call still runs, it raises `StillRunningError` once a second.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._watching = False
        self._rung = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Uses SIGALRM and its timer if they are available, and restores both at the end."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self._seconds is None or not hasattr(signal, "setitimer") or not in_main_thread:
            yield
            return
        delay, interval = signal.setitimer(signal.ITIMER_REAL, 0.0)
        started = time.monotonic()
        handler = signal.signal(signal.SIGALRM, self._ring)
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
            if delay:
                signal.setitimer(signal.ITIMER_REAL, max(delay - (time.monotonic() - started), 1e-3), interval)

    def restart(self) -> None:
        """Starts the time of the next call."""
        if self._watching and self._seconds is not None:
            self._rung = False
            signal.setitimer(signal.ITIMER_REAL, self._seconds, 1.0)

    def _ring(self, number: int, frame: object) -> None:
        kind = StillRunningError if self._rung else TimeoutError
        self._rung = True
        raise kind(f"no answer within {self._seconds:g} s")
