"""Threads that compute jobs in parallel, each on one core.

The threads are daemons that never end. When a thread ends, torch needs Python to free what it kept
after an error. If Python is already shutting down, the process aborts.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

import torch

Result = TypeVar("Result")
Work: TypeAlias = tuple[Future[Any], Callable[[], Any]]


class Threads:
    """Threads that wait for jobs until the process ends.

    Args:
        number: number of threads.
    """

    def __init__(self, number: int) -> None:
        self._waiting: SimpleQueue[Work] = SimpleQueue()
        self._turns = [threading.Lock() for _ in range(number)]
        for place, turn in enumerate(self._turns):
            name, arguments = f"metarl_{place}", (self._waiting, turn)
            threading.Thread(target=_serve, args=arguments, name=name, daemon=True).start()
        atexit.register(self.rest)

    def run(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of `jobs`, in their order.

        Raises:
            BaseException: the error of the first failed job, after all jobs have ended.
        """
        futures: list[Future[Result]] = [Future() for _ in jobs]
        for work in zip(futures, jobs, strict=True):
            self._waiting.put(work)
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def rest(self) -> None:
        """Waits for the jobs that are running; no job runs after this."""
        while self._turns:
            self._turns.pop().acquire()


def _serve(waiting: SimpleQueue[Work], turn: threading.Lock) -> None:
    torch.get_num_threads()  # otherwise torch would use the process's number at this thread's first operation
    torch.set_num_threads(1)
    while True:
        _do(turn, *waiting.get())


def _do(turn: threading.Lock, future: Future[Any], job: Callable[[], Any]) -> None:
    with turn:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = job()
        except BaseException as error:  # handed to the thread that waits for it
            future.set_exception(error)
            del future  # the error holds this frame
        else:
            future.set_result(result)
