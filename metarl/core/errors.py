"""Errors with a message of one line: `InputError` for bad input, `RunError` for a run that had to end.

After an `InputError`, the command line prints the message and exits with code 2. After a `RunError`, it prints the
traceback of the cause, if there is one, then the message, and exits with code 1.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ENVIRONMENT, DISTRIBUTION = "the environment's", "the task distribution's"


class InputError(ValueError):
    """Bad input. The message has the field, the value, what is allowed and, for an unknown name, the nearest one."""


class RunError(RuntimeError):
    """An error that ends a run although its settings are good."""


class EnvironmentFaultError(RunError):
    """An environment or a task distribution raised an error (the `__cause__`), hung, or returned an unusable value."""


class NonFiniteError(RunError):
    """Too many updates in a row had NaN or infinite numbers."""


def environment_fault(
    what: str, *, task: object, seed: int | None, step: int | None, whose: str = ENVIRONMENT
) -> EnvironmentFaultError:
    """The error for a fault of an environment or of a task distribution.

    Args:
        what: the fault, such as "step raised ValueError: ...".
        task: the environment's task; None if it has none yet.
        seed: the seed of its reset, or None.
        step: steps since the reset, including the present one; 0 in the reset. None if there is no reset.
        whose: the owner of the method in `what`: `ENVIRONMENT` or `DISTRIBUTION`.
    """
    place = [] if task is None else [f"task {one_line(task, max_length=200)}"]
    place += [] if seed is None else [f"seed {seed}"]
    place += [] if step is None else [f"step {step}"]
    where = f" ({', '.join(place)})" if place else ""
    return EnvironmentFaultError(f"{whose} {one_line(what)}{where}")


@contextlib.contextmanager
def users_code(
    method: str,
    *,
    task: object = None,
    seed: int | None = None,
    step: int | None = None,
    whose: str = DISTRIBUTION,
) -> Iterator[None]:
    """Runs a user's method. Any error in it becomes an `EnvironmentFaultError` with task, seed and step.

    Bad input, MetaRL's own errors and Ctrl-C pass unchanged.

    Args:
        method: its name.
        task: as in `environment_fault`.
        seed: as in `environment_fault`.
        step: as in `environment_fault`.
        whose: as in `environment_fault`.
    """
    try:
        yield
    except (InputError, RunError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: it must not end the command with exit code 0
        what = f"{method} raised {described(error)}"
        fault = environment_fault(what, task=task, seed=seed, step=step, whose=whose)
        if isinstance(error, StopIteration):  # contextlib drops an error whose cause is this same object
            raise fault from StopIteration(*error.args).with_traceback(error.__traceback__)
        raise fault from error


@contextlib.contextmanager
def closing(close: Callable[[], object]) -> Iterator[None]:
    """Calls `close` at the end. If the block and `close` both raise, the error of the block is reported."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(RunError):
            close()
        raise
    close()


def text_of(value: object, form: Callable[[object], str] = str) -> str:
    """`form(value)`, where `form` is `str` or `repr`; a replacement text if the user's method raises."""
    try:
        return form(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"<{type(value).__name__} without text: {form.__name__} raised {type(error).__name__}>"


def described(error: BaseException) -> str:
    """The type of `error`, and its text if it has one: "ValueError: no", "SystemExit"."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def printable(text: str) -> str:
    r"""`text` with unprintable characters escaped, since a terminal may interpret them: \x1b, \n, \u202e, \ud800."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(value: object, *, max_length: int = 300) -> str:
    """`value` as printable text without line breaks, cut where it is longer than `max_length`."""
    text = printable(" ".join(text_of(value).split()))
    return text if len(text) <= max_length else f"{text[:max_length]} ..."


def shortened(value: object) -> str:
    """`repr(value)` for a message."""
    return one_line(text_of(value, repr))


def raised(error: BaseException) -> str:
    """The message of an error in a user's code, with the place in that code: "ValueError: no (poles.py:7)"."""
    paths = sysconfig.get_paths()
    libraries = (*(paths[name] for name in ("stdlib", "purelib", "platlib")), f"{Path(__file__).parents[1]}{os.sep}")
    frames = traceback.extract_tb(error.__traceback__)
    # The first frame is the caller of the user's code. Frames of libraries that this code called are left out.
    files = [frame for frame in frames[1:] if Path(frame.filename).is_absolute()]  # compiled code has none
    own = [frame for frame in files if not frame.filename.startswith(libraries)]
    place = f" ({_relative(own[-1].filename)}:{own[-1].lineno})" if own else ""
    return one_line(described(error)) + printable(place)


def _relative(path: str) -> str:
    try:
        return os.path.relpath(path)
    except (OSError, ValueError):  # the working directory is gone, or on another drive
        return path


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises `InputError` "<field> = <value>: must be <allowed>" unless `condition` holds.

    Write the condition so that NaN fails it (`0.0 < x`, not `not x <= 0.0`).
    """
    if not condition:
        raise InputError(f"{field} = {shortened(value)}: must be {allowed}")


def require_one_of(field: str, value: object, options: tuple[str, ...]) -> None:
    """Raises `InputError` unless `value` is among `options`."""
    require(value in options, field, value, "one of " + ", ".join(repr(option) for option in options))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among `known`; lists the nearest ones first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return InputError(f"{kind} = {name!r}: unknown; {hint}")


@functools.cache
def warn_once(logger: logging.Logger, warning: str) -> None:
    """Logs a warning, but only the first time."""
    logger.warning(warning)
