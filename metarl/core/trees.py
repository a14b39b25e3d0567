"""Functions on trees of tensors: nested dataclasses, tuples, named tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def tree_map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Applies `function` to every tensor of `tree`. Other leaves stay as they are."""
    return _zip(lambda tensors: function(tensors[0]), [tree])  # type: ignore[no-any-return]


def tree_zip(function: Callable[[list[Tensor]], Tensor], trees: list[Tree]) -> Tree:
    """Applies `function` to the tensors at the same place of all `trees`. The trees must have one structure."""
    return _zip(function, trees)  # type: ignore[no-any-return]


def to_device(tree: Tree, device: torch.device | str) -> Tree:
    """Moves every tensor of `tree`. The only place where data changes devices."""
    return tree_map(lambda tensor: tensor.to(device), tree)


def children(tree: object) -> dict[Any, Any] | None:
    """The parts of a container by key, index or field name; None if `tree` is no container."""
    if isinstance(tree, Mapping):
        return dict(tree)
    if is_named_tuple(type(tree)):
        return tree._asdict()  # type: ignore[attr-defined, no-any-return]
    if isinstance(tree, (list, tuple)):
        return dict(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return {field.name: getattr(tree, field.name) for field in fields(tree)}
    return None


def is_named_tuple(kind: object) -> bool:
    """Whether `kind` is a class of named tuples."""
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def leaves(tree: object, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in `tree` that is not a container, each with its place: ("parameters.0.weight", tensor)."""
    parts = children(tree)
    if parts is None:
        yield name, tree
        return
    for key, part in parts.items():
        yield from leaves(part, f"{name}.{key}" if name else str(key))


def tensors_in(tree: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors among the `leaves`."""
    return ((place, leaf) for place, leaf in leaves(tree, name) if isinstance(leaf, Tensor))


def _zip(function: Callable[[list[Tensor]], Tensor], trees: Sequence[Any]) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return function(list(trees))
    parts = children(first)
    if parts is None:
        return first
    others = [children(tree) or {} for tree in trees[1:]]
    if any(parts.keys() != other.keys() for other in others):
        raise ValueError("the trees differ in structure")
    zipped = {key: _zip(function, [part, *(other[key] for other in others)]) for key, part in parts.items()}
    if isinstance(first, Mapping):
        return zipped
    if is_dataclass(first) and not isinstance(first, type):
        return replace(first, **zipped)
    return type(first)(*zipped.values()) if is_named_tuple(type(first)) else type(first)(zipped.values())
