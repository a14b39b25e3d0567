"""Bounds of settings, declared in the annotation: `inner_lr: Annotated[float, Positive] = 0.1`.

A bound holds for every number in the annotated type. `Annotated[int | None, AtLeast(1)]` allows None and the integers
1, 2, ... `Annotated[tuple[int, ...], AtLeast(1)]` allows tuples of these integers. A setting may have several bounds.
No bound allows NaN or infinity. `fit` checks a value, and `words` says what is allowed.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

Part = TypeVar("Part")


@dataclass(frozen=True)
class Bound:
    """Which numbers a setting may be.

    Attributes:
        allows: whether a finite number is allowed.
        words: the allowed numbers, with {} in the place of the noun: "{} >= 1".
    """

    allows: Callable[[float], bool]
    words: str


def AtLeast(low: float) -> Bound:  # noqa: N802 (it stands where a type stands)
    """Numbers >= low."""
    return Bound(lambda value: value >= low, f"{{}} >= {low}")


def Between(low: float, high: float) -> Bound:  # noqa: N802
    """Numbers from `low` to `high`, both included."""
    return Bound(lambda value: low <= value <= high, f"{{}} from {low} to {high}")


def AtMost(high: float) -> Bound:  # noqa: N802
    """Numbers <= high."""
    return Bound(lambda value: value <= high, f"{{}} <= {high}")


def Below(high: float) -> Bound:  # noqa: N802
    """Numbers < high."""
    return Bound(lambda value: value < high, f"{{}} < {high}")


Finite = Bound(math.isfinite, "finite {}")
Positive = Bound(lambda value: value > 0, "positive {}")
Odd = Bound(lambda value: value % 2 == 1, "odd {}")


_KINDS: dict[type, Any] = {bool: bool, int: numbers.Integral, float: numbers.Real, str: str, Path: (str, Path)}
"""The type of a setting -> the type its value may have. numbers.Integral and numbers.Real include numpy's numbers."""
_NOUNS = {int: "integer", float: "number", str: "string", Path: "path"}


class NotASettingError(TypeError):
    """An annotation of a type that no settings file can hold."""


def fit(value: object, hint: Any, bounds: tuple[Bound, ...] = ()) -> Any:
    """Converts `value` to the type `hint`, such as an integer to a float or a list to a tuple.

    Args:
        value: from a settings file or from Python.
        hint: an annotation.
        bounds: bounds besides those in `hint`.

    Raises:
        ValueError: it does not fit.
        NotASettingError: no setting can have the type `hint`.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return fit(value, args[0], (*bounds, *_bounds(hint)))
    if origin in (typing.Union, types.UnionType):
        for option in args:
            with contextlib.suppress(ValueError):
                return fit(value, option, bounds)
    elif origin is Literal:
        if any(type(value) is type(option) and value == option for option in args):
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            kinds = args[:1] * len(value) if args[-1:] == (Ellipsis,) else args
            return tuple(fit(item, kind, bounds) for item, kind in zip(value, kinds, strict=True))
    elif hint is types.NoneType:
        if value is None:
            return None
    elif hint not in _KINDS:
        raise NotASettingError(f"{hint!r} is not a type that a setting can have")
    elif isinstance(value, _KINDS[hint]) and (hint is bool or not isinstance(value, bool)):
        with contextlib.suppress(OverflowError):  # an integer beyond the largest float
            made = hint(value)
            if not (bounds and hint in (int, float)) or _allowed(made, bounds):
                return made
    raise ValueError


def _allowed(number: float, bounds: tuple[Bound, ...]) -> bool:
    return -math.inf < number < math.inf and all(bound.allows(number) for bound in bounds)


def words(hint: Any, bounds: tuple[Bound, ...] = (), *, plural: bool = False) -> str:
    """What `hint` and `bounds` allow: "an integer >= 1, or left out"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return words(args[0], (*bounds, *_bounds(hint)), plural=plural)
    if origin in (typing.Union, types.UnionType):
        options = [words(option, bounds, plural=plural) for option in args if option is not types.NoneType]
        return " or ".join(options) + (", or left out" if len(options) < len(args) else "")
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        count = "" if args[-1:] == (Ellipsis,) else f"{len(args)} "
        return f"a list of {count}{words(args[0], bounds, plural=True)}"
    if hint is bool:
        return "true or false"
    noun = _NOUNS[hint] + ("s" if plural else "")
    for bound in bounds:
        noun = bound.words.format(noun)
    return noun if plural else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def parts_of(hint: Any, kind: type[Part]) -> list[Part]:
    """The objects of type `kind` at any depth of an annotation: its bounds, or the strings of its Literals."""
    args = typing.get_args(hint)
    return [part for arg in args for part in ([arg] if isinstance(arg, kind) else parts_of(arg, kind))]


def _bounds(hint: Any) -> tuple[Bound, ...]:
    return tuple(extra for extra in typing.get_args(hint)[1:] if isinstance(extra, Bound))
