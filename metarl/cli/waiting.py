"""Reports of progress while a command waits."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from metarl.core.errors import printable

SILENCE_S = 1.0


@contextlib.contextmanager
def reporting(what: str) -> Iterator[Callable[[str], None]]:
    """Reports on standard error which part of the work is being done.

    On a terminal, one line appears after 1 s, changes, and is removed at the end. Elsewhere, a plain line is printed
    after 1 s, 2 s, 4 s and so on.

    Args:
        what: the work, such as "checking mine:Mine".

    Yields:
        A function to call with the name of each part of the work as it begins.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    started = time.monotonic()
    doing = [""]
    done = threading.Event()

    def report() -> None:
        due = SILENCE_S
        with contextlib.ExitStack() as shown:
            status = None
            while not done.wait(max(0.0, started + due - time.monotonic())):
                seconds = time.monotonic() - started
                line = Text(printable(f"metarl: {what}, {seconds:.0f} s: {doing[0]}"))
                if not console.is_terminal:
                    console.print(line)
                    due *= 2
                    continue
                status = status or shown.enter_context(console.status(line))
                status.update(line)
                due = seconds + SILENCE_S

    thread = threading.Thread(target=report, daemon=True)
    thread.start()

    def begin(part: str) -> None:
        doing[0] = part

    try:
        yield begin
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def drawing() -> Iterator[Callable[[int, int], None]]:
    """Shows how many pictures are drawn: a bar on a terminal, ten plain lines elsewhere."""
    console = Console(highlight=False, soft_wrap=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        row = bar.add_task("drawing")

        def on_frame(drawn: int, most: int) -> None:
            bar.update(row, completed=drawn, total=most)
            if not console.is_terminal and 10 * drawn // most > 10 * (drawn - 1) // most:
                console.print(f"drawn {drawn}/{most}")

        yield on_frame
