"""A time limit for calls of foreign code, which are broken off with a `TimeoutError` raised where they hang.

That is done by SIGALRM: on POSIX, in the main thread, and for code that comes back to Python now and then; elsewhere
there is no limit.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator


class StillRunningError(BaseException):
    """What `except Exception` in a loop does not catch, as it may have caught the `TimeoutError` before."""


class TimeLimit:
    """Raises `TimeoutError` in what runs longer than `seconds` after `restart`, while `watching`; then, once a second,
    `StillRunningError`."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._watching = False
        self._rung = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Takes SIGALRM and its timer, where they are to be had; gives both back as they were."""
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
        """The time of the next call begins."""
        if self._watching and self._seconds is not None:
            self._rung = False
            signal.setitimer(signal.ITIMER_REAL, self._seconds, 1.0)

    def _ring(self, number: int, frame: object) -> None:
        kind = StillRunningError if self._rung else TimeoutError
        self._rung = True
        raise kind(f"no answer within {self._seconds:g} s")
