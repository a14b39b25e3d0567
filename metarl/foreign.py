"""Calls of what users wrote, for the checks: under a time limit, with what goes wrong said in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from metarl.errors import InputError, RunError, raised
from metarl.gymnasium_tasks import TimeLimit
from metarl.mujoco_warnings import caught

TIMEOUT_S = 60.0

Result = TypeVar("Result")


class Foreign:
    """Calls foreign code.

    Args:
        timeout: seconds that one call may take, > 0; None for no limit.
        on_call: told what is called, before each call.
    """

    def __init__(self, timeout: float | None = TIMEOUT_S, on_call: Callable[[str], None] | None = None) -> None:
        self.timeout = timeout
        self.on_call = on_call or (lambda _: None)
        self._limit = TimeLimit(timeout)

    def __call__(self, what: str, function: Callable[..., Result], *arguments: object, **settings: object) -> Result:
        """What `function` returns.

        Raises:
            InputError: it raised something else than an error of MetaRL's, or took too long: "<what> raised ...".
        """
        self.on_call(what)
        try:
            with caught(), self._limit.watching():
                self._limit.restart()
                return function(*arguments, **settings)
        except (InputError, RunError):
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"{what} raised {raised(error)}") from error
