"""Calls a user's code for the checks, with a time limit. Each error becomes one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from metarl.core.errors import DISTRIBUTION, ENVIRONMENT, one_line, users_code
from metarl.core.time_limit import TimeLimit
from metarl.rl.mujoco_warnings import caught

TIMEOUT_S = 60.0

Result = TypeVar("Result")


class Foreign:
    """Runs foreign code. An error or a timeout becomes an `EnvironmentFaultError`.

    Args:
        timeout: seconds that one call may take, > 0; None for no limit.
        on_call: called with the name of each call before it is made.
    """

    def __init__(self, timeout: float | None = TIMEOUT_S, on_call: Callable[[str], None] | None = None) -> None:
        self.timeout = timeout
        self.on_call = on_call or (lambda _: None)
        self._limit = TimeLimit(timeout)

    def __call__(self, method: str, function: Callable[..., Result], *arguments: object, **settings: object) -> Result:
        """Calls `function`, a method of a task distribution. `method` is its name in messages."""
        with self._running(method, whose=DISTRIBUTION):
            return function(*arguments, **settings)

    @contextlib.contextmanager
    def environment(self, method: str, *, task: object = None, seed: int | None = None) -> Iterator[None]:
        """Runs an environment's `method`."""
        with self._running(method, task=task, seed=seed, step=None if seed is None else 0, whose=ENVIRONMENT):
            yield

    @contextlib.contextmanager
    def _running(
        self, method: str, *, task: object = None, seed: int | None = None, step: int | None = None, whose: str
    ) -> Iterator[None]:
        self.on_call(method if task is None else f"{method}, task {one_line(task, max_length=100)}")
        with caught(), self._limit.watching(), users_code(method, task=task, seed=seed, step=step, whose=whose):
            self._limit.restart()
            yield
