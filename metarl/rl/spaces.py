"""Converts spaces for a policy: it observes one flat vector, and its action is one flat vector or one choice.

`Fit.notes` describes the conversion in words; `metarl.rl.wrappers` applies it. If an environment's
`metadata["own_units"]` is true, nothing is rescaled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.core.errors import InputError, one_line, require
from metarl.rl.tasks import AnySpace, Array

MOST_CHOICES = 4096
"""The most choices of one discrete action, and the most values of a discrete observation that is encoded one-hot."""
MANY_INPUTS = 4096
"""With at least this many observed numbers, the note says that the policy has no convolutions."""
_DISCRETE = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_NO_BOUND = {"f": 1e18, "i": 2.0**31 - 1.0, "u": 2.0**31 - 1.0}  # a bound this large counts as no bound

Floats = NDArray[np.float64]


class PolicyBox(spaces.Box):
    """Actions in the policy's own units: they are clipped to these bounds and never rescaled."""


class NotOfItsSpaceError(ValueError):
    """An observation does not belong to its observation space. The message says why."""


class ObservationFit:
    """Observations as flat vectors, in the order of `gymnasium.spaces.utils.flatten`, with two differences in value.

    Integers of a Box with finite bounds are rescaled to [-1, 1]. A discrete observation of more
    than `MOST_CHOICES` values is one number in [-1, 1] instead of one-hot.

    Args:
        given: the environment's space.
        rescale: False keeps the integers of a Box as they are.

    Attributes:
        given: the environment's space.
        space: a flat Box.
        changes: whether observations are changed at all.
        note: what is done, in words; "" for nothing.

    Raises:
        InputError: the space has no fixed size. The message says what to do.
    """

    def __init__(self, given: AnySpace, *, rescale: bool = True) -> None:
        require(isinstance(given, spaces.Space), "observation_space", given, "a gymnasium space")
        self.given = given
        leaves = [*_leaves(given)]
        for leaf in leaves:
            if not isinstance(leaf, (spaces.Box, *_DISCRETE)):
                raise InputError(
                    f"observation_space = {one_line(given)}: {type(leaf).__name__} has no fixed size; in "
                    "make_env, wrap the environment in a gymnasium.ObservationWrapper that turns it into a Box"
                )
        self._parts = [_Observed(leaf, rescale) for leaf in leaves]
        size = sum(len(part.unit) for part in self._parts)
        require(size > 0, "observation_space", given, "one that holds at least one number")
        flat = isinstance(given, spaces.Box) and len(given.shape) == 1
        self.changes = not (flat and given.dtype in (np.float32, np.float64))
        self.space: AnySpace = given
        if self.changes:
            low, high = (np.concatenate([getattr(part, end) for part in self._parts]) for end in ("low", "high"))
            self.space = spaces.Box(low, high, dtype=np.float32)
        self._unit = np.concatenate([part.unit for part in self._parts])
        self._centre = np.concatenate([part.centre for part in self._parts])
        self._rescaled = (self._unit != 1.0) | (self._centre != 0.0)
        self.note = ""
        if self.changes:
            done = [] if flat else [f"flattened to {_numbers(size)}"]
            if self._rescaled.any():
                done.append("integers rescaled to [-1, 1] by their bounds")
            if size >= MANY_INPUTS:
                done.append("the policy sees them as one long vector and has no convolutions")
            self.note = f"observation {one_line(given, max_length=150)}: {'; '.join(done) or 'taken as float32'}"

    def __call__(self, observations: Any, *, batch: bool = False) -> Array:
        """Flat observations.

        Args:
            observations: one of the space; with `batch`, those of n environments in gymnasium's form.
            batch: whether `observations` are those of n environments.

        Returns:
            [size], or [n, size].

        Raises:
            NotOfItsSpaceError: an observation is not of the space's shapes, or is no number.
        """
        if not self.changes:
            return observations  # type: ignore[no-any-return]
        columns = []
        for part, value in zip(self._parts, _values(self.given, observations), strict=True):
            try:
                rows = np.asarray(value) if batch else np.asarray(value)[np.newaxis]
                fits = rows.ndim > 0 and rows.shape[1:] == part.space.shape and rows.dtype.kind in "buif"
            except Exception:  # ragged lists, or whatever a foreign object raises
                fits = False
            if not fits:
                raise _not_of(part.space, value)
            columns.append(part.encoded(rows.reshape(len(rows), -1)))
        flat = np.concatenate(columns, axis=1)
        return flat if batch else flat[0]

    def in_own_units(self, flat: Array) -> Array:
        """Undoes the rescaling of flat observations [..., size]. Further numbers on the last axis stay unchanged."""
        if not self._rescaled.any():
            return flat
        size = len(self._unit)
        own = flat[..., :size].astype(np.float64) * self._unit + self._centre
        own = np.where(self._rescaled, np.rint(own), own)  # only integers are rescaled
        return np.concatenate([own.astype(flat.dtype), flat[..., size:]], axis=-1)


class ActionFit:
    """Converts a policy's actions into those of the environment.

    A Box of any shape, or a Tuple or Dict of Boxes, becomes one flat vector. Finite bounds become -1 and 1 for the
    policy. A lower bound alone becomes -1, an upper bound alone 1; the unit is then max(1, |bound|). Discrete parts
    become one choice among all their combinations.

    Args:
        given: the environment's space.
        rescale: False keeps the environment's units; those of a `PolicyBox` are kept in any case.

    Attributes:
        given: the environment's space.
        space: the policy's action space, a flat Box or a Discrete that starts at 0.
        changes: whether actions are changed, beyond being clipped.
        note: what is done, in words; "" for nothing.

    Raises:
        InputError: the space is not supported. The message says what to do.
    """

    def __init__(self, given: AnySpace, *, rescale: bool = True) -> None:
        require(isinstance(given, spaces.Space), "action_space", given, "a gymnasium space")
        self.given = given
        self._leaves = [*_leaves(given)]
        advice = "in make_env, wrap the environment in a gymnasium.ActionWrapper whose action_space is a Box"
        self._choices: tuple[int, ...] = ()
        self.space: AnySpace = given
        if self._leaves and all(isinstance(leaf, _DISCRETE) for leaf in self._leaves):
            done = self._choose(advice)
        elif self._leaves and all(isinstance(leaf, spaces.Box) for leaf in self._leaves):
            done = self._scale(rescale and not isinstance(given, PolicyBox))
        else:
            kinds = ", ".join(dict.fromkeys(type(leaf).__name__ for leaf in self._leaves)) or "nothing"
            raise InputError(
                f"action_space = {one_line(given)}: must hold only Box or only discrete parts, not {kinds}; {advice}"
            )
        self.changes = self.space is not given
        self.note = f"action {one_line(given, max_length=150)}: {'; '.join(done)}" if done else ""

    def __call__(self, actions: Array, *, batch: bool = False) -> Any:
        """The actions for the environment.

        Args:
            actions: of `space`; with `batch`, [n, ...] of n environments.
            batch: whether `actions` are those of n environments; the result then has gymnasium's vector form.

        Returns:
            Of the space `given`, clipped to its bounds.
        """
        rows = np.asarray(actions) if batch else np.asarray(actions)[np.newaxis]
        if self._choices:
            columns = np.stack(np.unravel_index(rows, self._choices), axis=1) + self._first
        else:
            columns = self._centre + self._unit * rows.astype(np.float64)
            if self._whole.any():
                columns = np.where(self._whole, np.rint(columns), columns)
            columns = np.minimum(np.maximum(columns, self._low), self._high)
        parts, start = [], 0
        for leaf in self._leaves:
            shape = leaf.shape or ()
            end = start + math.prod(shape)
            part = columns[:, start:end].astype(leaf.dtype).reshape(len(rows), *shape)
            # A Discrete takes a number. A Box takes an array even without axes, which [0, ...] keeps.
            parts.append(part if batch else part[0] if isinstance(leaf, spaces.Discrete) else part[0, ...])
            start = end
        return _rebuilt(self.given, iter(parts))

    def _choose(self, advice: str) -> list[str]:
        counts, first = zip(*(_values_of(leaf) for leaf in self._leaves), strict=True)
        self._choices = tuple(int(count) for count in np.concatenate(counts))
        self._first = np.concatenate(first)
        total = math.prod(self._choices)
        if not 1 <= total <= MOST_CHOICES:
            raise InputError(
                f"action_space = {one_line(self.given)}: has {total} combinations; one choice can have at most "
                f"{MOST_CHOICES}; {advice} with one number for each of the {len(self._choices)} choices"
            )
        if isinstance(self.given, spaces.Discrete):
            if self.given.start == 0:
                return []
            self.space = spaces.Discrete(total)
            return [f"0 stands for {self.given.start}"]
        self.space = spaces.Discrete(total)
        return [f"one choice among all {total} combinations"]

    def _scale(self, rescale: bool) -> list[str]:
        boxes = [leaf for leaf in self._leaves if isinstance(leaf, spaces.Box)]
        self._low = np.concatenate([np.asarray(box.low, np.float64).ravel() for box in boxes])
        self._high = np.concatenate([np.asarray(box.high, np.float64).ravel() for box in boxes])
        require(len(self._low) > 0, "action_space", self.given, "one that holds at least one number")
        self._whole = np.concatenate([np.full(math.prod(box.shape), box.dtype.kind in "iub") for box in boxes])
        low, high = (np.concatenate(ends) for ends in zip(*map(_bounds, boxes), strict=True))
        self._unit, self._centre = np.ones(len(low)), np.zeros(len(low))
        below, above = np.isfinite(low), np.isfinite(high)
        finite, fixed = below & above, (self._low == self._high) & rescale
        if rescale:
            self._unit[finite] = (high[finite] - low[finite]) / 2.0
            self._centre[finite] = (high[finite] + low[finite]) / 2.0
            from_low, to_high = below & ~above, above & ~below
            self._unit[from_low] = np.maximum(1.0, np.abs(low[from_low]))
            self._unit[to_high] = np.maximum(1.0, np.abs(high[to_high]))
            self._centre[from_low] = low[from_low] + self._unit[from_low]
            self._centre[to_high] = high[to_high] - self._unit[to_high]
        rescaled = ((self._unit != 1.0) | (self._centre != 0.0)) & ~fixed
        one_sided = rescaled & ~finite
        flat = isinstance(self.given, spaces.Box) and len(self.given.shape) == 1
        if flat and not (rescaled | fixed | self._whole).any():
            return []
        done = [] if flat else [f"flattened to {_numbers(len(low))}"]
        if (rescaled & finite).any():
            done.append("rescaled from [-1, 1]")
        if one_sided.any():
            done.append("with only one bound, it is at -1 or 1 and the unit is max(1, |bound|)")
        if fixed.any():
            done.append(f"{int(fixed.sum())} of {len(low)} cannot vary: their bounds are equal")
        if self._whole.any():
            done.append("integers are rounded")
        if rescale:
            low, high = np.where(below, -1.0, -np.inf), np.where(above, 1.0, np.inf)
        self.space = PolicyBox(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        return done


class Fit:
    """How the spaces of an environment are converted for a policy.

    Args:
        observation_space: of one environment.
        action_space: of one environment.
        metadata: the environment's; `own_units`, if true, leaves numbers in the environment's units.

    Attributes:
        observation: the conversion of observations.
        action: the conversion of actions.
        notes: one line for each conversion; empty if nothing is converted.

    Raises:
        InputError: a space is not supported. The message says what to do.
    """

    def __init__(self, observation_space: AnySpace, action_space: AnySpace, metadata: Mapping[str, Any]) -> None:
        rescale = not metadata.get("own_units", False)
        self.observation = ObservationFit(observation_space, rescale=rescale)
        self.action = ActionFit(action_space, rescale=rescale)
        self.notes = tuple(note for note in (self.action.note, self.observation.note) if note)

    @property
    def changes(self) -> bool:
        """Whether anything is converted."""
        return self.observation.changes or self.action.changes


class _Observed:
    """A part of an observation without parts of its own, as numbers [size]: value = unit * number + centre."""

    def __init__(self, space: AnySpace, rescale: bool) -> None:
        self.space = space
        self._counts: list[int] = []
        if isinstance(space, spaces.Box):
            low, high = _bounds(space)
            scaled = np.isfinite(low) & np.isfinite(high) & rescale & (space.dtype.kind in "iub")
        else:
            counts, self._first = _values_of(space)
            if not isinstance(space, spaces.MultiBinary):
                self._counts = counts.tolist()
            many = counts > MOST_CHOICES
            repeats = np.ones(len(counts), int) if not self._counts else np.where(many, 1, counts)
            low, high = (
                np.repeat(end, repeats) for end in (many * self._first, np.where(many, self._first + counts - 1, 1))
            )
            scaled = np.repeat(many, repeats)
        wide = scaled & (high > low)
        self.unit, self.centre = np.ones(len(low)), np.zeros(len(low))
        self.unit[wide] = (high[wide] - low[wide]) / 2.0
        self.centre[scaled] = (high[scaled] + low[scaled]) / 2.0
        with np.errstate(over="ignore"):
            self.low, self.high = (((end - self.centre) / self.unit).astype(np.float32) for end in (low, high))

    def encoded(self, rows: Array) -> Array:
        """Observations [n, numbers of the space] as [n, size] float32."""
        numbers = rows
        if self._counts:
            columns = []
            for column, first, count in zip(rows.T, self._first, self._counts, strict=True):
                one_hot = column[:, np.newaxis] - first == np.arange(count if count <= MOST_CHOICES else 1)
                if count <= MOST_CHOICES and not one_hot.any(1).all():
                    raise _not_of(self.space, column)
                columns.append(one_hot if count <= MOST_CHOICES else column[:, np.newaxis])
            numbers = np.concatenate(columns, axis=1)
        with np.errstate(over="ignore"):  # `check_step` refuses numbers that are not finite
            return ((numbers - self.centre) / self.unit).astype(np.float32)


def own_units(space: AnySpace) -> AnySpace:
    """`space`; a Box becomes a `PolicyBox`, because its actions are already in the policy's units."""
    if not isinstance(space, spaces.Box):
        return space
    return PolicyBox(space.low, space.high, dtype=space.dtype)


def _bounds(box: spaces.Box) -> tuple[Floats, Floats]:
    """Lower and upper bounds as vectors; infinite where there is no bound (`_NO_BOUND`)."""
    none = _NO_BOUND.get(box.dtype.kind, math.inf)
    low, high = np.asarray(box.low, np.float64).ravel(), np.asarray(box.high, np.float64).ravel()
    return np.where(low <= -none, -np.inf, low), np.where(high >= none, np.inf, high)


def _values_of(space: AnySpace) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of values and the first value, for each number of a discrete space."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n], np.int64), np.array([space.start], np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel().astype(np.int64), np.asarray(space.start).ravel().astype(np.int64)
    count = math.prod(space.shape or ())
    return np.full(count, 2), np.zeros(count, np.int64)


def _not_of(space: AnySpace, value: object) -> NotOfItsSpaceError:
    return NotOfItsSpaceError(f"an observation {one_line(value, max_length=80)}: must be of {one_line(space)}")


def _numbers(count: int) -> str:
    return f"{count} number{'s' * (count > 1)}"


def _leaves(space: AnySpace) -> Iterator[AnySpace]:
    """The parts of nested Dicts and Tuples, in gymnasium's order."""
    if isinstance(space, spaces.Dict):
        parts: Sequence[AnySpace] = [*space.spaces.values()]
    elif isinstance(space, spaces.Tuple):
        parts = space.spaces
    else:
        yield space
        return
    for part in parts:
        yield from _leaves(part)


def _values(space: AnySpace, value: Any) -> Iterator[Any]:
    """The part of `value` for each leaf of `space`."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or not space.spaces.keys() <= value.keys():
            kind = f"keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
            raise NotOfItsSpaceError(
                f"an observation with {kind}: must be a dict with {', '.join(map(str, space.spaces))}"
            )
        for key, part in space.spaces.items():
            yield from _values(part, value[key])
    elif isinstance(space, spaces.Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            raise _not_of(space, value)
        for part, own in zip(space.spaces, value, strict=True):
            yield from _values(part, own)
    else:
        yield value


def _rebuilt(space: AnySpace, leaves: Iterator[Any]) -> Any:
    """The inverse of `_values`."""
    if isinstance(space, spaces.Dict):
        return {key: _rebuilt(part, leaves) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_rebuilt(part, leaves) for part in space.spaces)
    return next(leaves)
