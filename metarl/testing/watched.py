"""Watches the calls of a learner: checks their results, and whether they change arguments or global generators."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import numbers
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.core.errors import one_line, raised
from metarl.core.trees import Tree, leaves, tensors_in, tree_map
from metarl.runs.registry import ACTING_METHODS

READ_ONLY = ("prepare", "adapt", "score", "act", "observe")
"""Methods that may change neither their arguments nor the learner."""


class CheckFailedError(Exception):
    """A fault of a learner, in one line, after which nothing more can be checked."""


class Watched:
    """A learner whose calls are watched: for errors, wrong results, changed arguments and use of global generators.

    Attributes:
        faults: faults after which the checks could continue.
    """

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self.faults: dict[str, None] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._learner, name)
        return functools.partial(self._call, name, value) if name in ACTING_METHODS else value

    def _call(self, name: str, method: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        given, generators = copied(arguments) if name in READ_ONLY else (), global_generators()
        try:
            result = method(*arguments, **settings)
        except (Exception, SystemExit) as error:
            raise CheckFailedError(f"{name} raised {raised(error)}") from error
        for library, state in global_generators().items():
            if state != generators[library]:
                advice = "draw from a generator of the learner's own, seeded by that of its constructor"
                self.faults[f"{name} uses the global generator of {library}: {advice}"] = None
        if given and (changed := differences(given, arguments, tuple(inspect.signature(method).parameters))):
            self.faults[f"{name} changes its arguments in place ({changed}): return new tensors"] = None
        for fault in _result_faults(name, result, arguments):
            raise CheckFailedError(fault)
        return result


def _result_faults(name: str, result: object, arguments: Sequence[Any]) -> Iterator[str]:
    """Lists what is wrong with the `result` of a method."""
    if name in ("begin", "adapt", "observe"):
        size = arguments[0] if name == "begin" else _num_tasks(arguments[0])
        for place, tensor in tensors_in(result):
            if tensor.dim() > 0 and len(tensor) != size:
                where = f" ({place})" if place else ""
                yield f"{name} of {size} tasks returned a tensor{where} of shape {_shape(tensor)}: tasks come first"
    elif name == "act":
        if not isinstance(result, tuple) or len(result) != 2:
            yield f"act returned {one_line(repr(result))}: must be a pair, an Acted and the state"
            return
        acted, observations, noise = result[0], arguments[1], arguments[2]
        shapes = {"actions": noise.shape, "log_probs": observations.shape[:2]}
        for field, shape in shapes.items():
            value = getattr(acted, field, None)
            if not isinstance(value, Tensor) or value.shape != shape:
                found = f"of shape {_shape(value)}" if isinstance(value, Tensor) else f"{one_line(repr(value))}"
                yield f"act returned {field} {found}: must be a tensor of shape {list(shape)}"
    elif name == "score":
        size = _num_tasks(arguments[0])
        if not isinstance(result, Tensor) or result.dim() not in (1, 2) or (size and len(result) != size):
            found = str(_shape(result)) if isinstance(result, Tensor) else one_line(repr(result))
            yield f"score returned {found}: must be a tensor [num_tasks] or [num_tasks, num_units]"
    elif name == "meta_update":
        if not isinstance(result, dict):
            yield f"meta_update returned {one_line(repr(result))}: must be a dict of floats to log, which may be empty"
            return
        for key, value in result.items():
            if not isinstance(value, numbers.Real):
                yield f"meta_update returned {key} = {one_line(repr(value))}: must be a float; write float(...)"
            elif not math.isfinite(value):
                yield f"meta_update returned {key} = {value} on a small sound task: the trainer would undo the update"


def _num_tasks(state: object) -> int:
    sizes = [len(value) for _, value in tensors_in(state) if value.dim() > 0]
    return sizes[0] if sizes else 0


def _shape(value: Tensor) -> list[int]:
    return list(value.shape)


def copied(tree: Tree) -> Tree:
    return tree_map(lambda value: value.detach().clone(), tree)


def differences(left: Any, right: Any, names: Sequence[str] = (), *, exactly: bool = True) -> str:
    """The names of the first few leaves in which two structures differ; "" if there are none."""
    if names:
        left, right = (dict(zip(names, part, strict=False)) for part in (left, right))
    mine, other = dict(leaves(left)), dict(leaves(right))
    return listed([n for n in {**mine, **other} if not (n in mine and n in other and same(mine[n], other[n], exactly))])


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name or "it" for name in names[:3]) + more


def same(left: Any, right: Any, exactly: bool = True) -> bool:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return type(left) is type(right) and bool(np.array_equal(left, right)) if exactly else True
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    left, right = left.detach().nan_to_num(), right.detach().nan_to_num()
    return torch.equal(left, right) if exactly else torch.allclose(left.double(), right.double(), 1e-3, 1e-4)


def global_generators() -> dict[str, object]:
    kind, keys, position, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # this generator is watched
    drawn = (kind, np.asarray(keys).tobytes(), position, tuple(rest))
    return {"random": random.getstate(), "numpy": drawn, "torch": torch.get_rng_state().numpy().tobytes()}


@contextlib.contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """Seeds the global generators inside the block, and restores their states afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # this generator is watched
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002  # this generator is watched
        torch.set_rng_state(states[2])
