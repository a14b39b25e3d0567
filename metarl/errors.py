"""What a user did wrong, and what ended a run, said in one line.

The command line turns `InputError` into that line and exit code 2 (from Python it is a `ValueError`), and `RunError`
into the traceback of its cause, if there is one, then that line and exit code 1.
"""

from __future__ import annotations

import difflib
import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """A bad value from outside: names the field, the value, what is allowed and, for a name, the nearest one."""


class RunError(RuntimeError):
    """What ended a run whose settings were good."""


class EnvironmentFaultError(RunError):
    """An environment raised (the original error is the `__cause__`), hung, or returned what cannot be used."""


class NonFiniteError(RunError):
    """Too many updates in a row that were not finite."""


def environment_fault(what: str, *, task: object, seed: int | None, step: int) -> EnvironmentFaultError:
    """The error for `what` an environment did.

    Args:
        what: such as "step raised ValueError: ...".
        task: the environment's; None where it has none yet.
        seed: of its reset, or None.
        step: steps since then, the present one included; 0 in the reset.
    """
    place = [] if task is None else [f"task {one_line(task)}"]
    if seed is not None:
        place += [f"seed {seed}", f"step {step}"]
    where = f" ({', '.join(place)})" if place else ""
    return EnvironmentFaultError(f"the environment's {one_line(what)}{where}")


def printable(text: str) -> str:
    r"""`text` with escapes for what a terminal would interpret, or change the order of: \x1b, \n, \u202e, \ud800."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(value: object, *, max_length: int = 300) -> str:
    """`value` as printable text without line breaks, cut where it is longer than `max_length`."""
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= max_length else f"{text[:max_length]} ..."


def raised(error: BaseException) -> str:
    """What `error` of foreign code says, in one line with the place in that code: "ValueError: no (poles.py:7)"."""
    paths = sysconfig.get_paths()
    libraries = tuple(paths[name] for name in ("stdlib", "purelib", "platlib"))
    frames = traceback.extract_tb(error.__traceback__)
    # The first frame is of who called the foreign code; what its libraries did on its behalf is not where to look.
    files = [frame for frame in frames[1:] if Path(frame.filename).is_absolute()]  # compiled code has none
    own = [frame for frame in files if not frame.filename.startswith(libraries)]
    place = f" ({os.path.relpath(own[-1].filename)}:{own[-1].lineno})" if own else ""
    return one_line(f"{type(error).__name__}: {error}") + place


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises `InputError` "<field> = <value>: must be <allowed>" unless `condition` holds.

    Write the condition so that NaN fails it (`0.0 < x`, not `not x <= 0.0`).
    """
    if not condition:
        raise InputError(f"{field} = {value!r}: must be {allowed}")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among `known`; lists the nearest ones first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return InputError(f"{kind} = {name!r}: unknown; {hint}")
