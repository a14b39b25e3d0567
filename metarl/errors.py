"""What a user did wrong, said in one line.

The command line turns `InputError` into that line and exit code 2; from Python it is a `ValueError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A bad value from outside: names the field, the value, what is allowed and, for a name, the nearest one."""


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
