"""Bounds of settings, declared in the annotation: `inner_lr: Annotated[float, Positive] = 0.1`.

A bound holds for every number in the annotated type: `Annotated[int | None, AtLeast(1)]` allows None and positive
integers, and `Annotated[tuple[int, ...], AtLeast(1)]` any number of positive integers. A setting may have several
bounds. No bound allows NaN or an infinite number. `metarl.core.settings` checks them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


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


def allowed(value: float, bounds: tuple[Bound, ...]) -> bool:
    """Whether all bounds allow `value`."""
    return not bounds or (-math.inf < value < math.inf and all(bound.allows(value) for bound in bounds))
