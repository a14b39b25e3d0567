"""SIGINT, SIGTERM and SIGHUP end a command: at once, or after the current iteration."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal ended the command.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class StopSignals:
    """Turns signals into `Stopped` inside its `with` block.

    After `finish_first`, the first signal lets the iteration end and the second one raises. After `stop_at_once`, the
    first one raises. In both cases the third one ends the process. SIGHUP stays ignored if it was ignored before, as
    under nohup. Outside of the main thread Python allows no handlers, so signals keep their effect.

    Attributes:
        received: number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._count = 0
        self._raised = False
        self._finish: Callable[[], None] | None = None
        self._replaced: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
            self._replaced = {number: signal.signal(number, self._handle) for number in SIGNALS if number not in kept}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}

    def finish_first(self, finish: Callable[[], None]) -> None:
        """From now on, the first signal calls `finish`. If a signal came before, calls it now."""
        self._finish = finish
        if self.received is not None:
            finish()

    def stop_at_once(self) -> None:
        """From now on, the first signal raises `Stopped`.

        Raises:
            Stopped: a signal came before.
        """
        self._finish = None
        if self.received is not None:
            self._raise(self.received)

    def _handle(self, number: int, _: object) -> None:
        self._count += 1
        if self.received is None:
            self.received = number
        if self._count > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._raised:
            return
        elif self._finish is None or self._count == 2:
            self._raise(number)
        else:
            self._finish()
            with contextlib.suppress(OSError):  # not print, which the signal may have interrupted
                os.write(2, b"metarl: stopping after this iteration; press Ctrl-C again to stop now\n")

    def _raise(self, number: int) -> None:
        self._raised = True
        raise Stopped(number)
