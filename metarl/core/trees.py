"""Functions on nested dataclasses, tuples, lists and dicts of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def tree_map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Applies `function` to every tensor of nested dataclasses, tuples, named tuples, lists and dicts."""
    return _map(function, tree)  # type: ignore[no-any-return]


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(function, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(function, value) for value in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: _map(function, getattr(tree, f.name)) for f in fields(tree)})
    return tree


def tree_zip(function: Callable[[list[Tensor]], Tensor], trees: list[Tree]) -> Tree:
    """Applies `function` to the tensors that stand in the same place of all `trees`, which have one structure."""
    return _zip(function, trees)  # type: ignore[no-any-return]


def _zip(function: Callable[[list[Tensor]], Tensor], trees: list[Any]) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return function(trees)
    if isinstance(first, dict):
        return {key: _zip(function, [tree[key] for tree in trees]) for key in first}
    if isinstance(first, (list, tuple)):
        parts = [_zip(function, list(place)) for place in zip(*trees, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first


def to_device(tree: Tree, device: torch.device | str) -> Tree:
    """Moves every tensor of `tree`. The only place where data changes devices."""
    return tree_map(lambda tensor: tensor.to(device), tree)


def live_first(mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Packs rows of steps: those with mask 1 first, in their order, and only as many as the longest row has of them.

    Args:
        mask: [R, S], 0 or 1.

    Returns:
        A function of values [R, S, ...] that puts them into that order.
    """
    order = mask.argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]

    def packed(values: Tensor) -> Tensor:
        index = order.reshape(*order.shape, *(1,) * (values.dim() - 2))
        return values.gather(1, index.expand(*order.shape, *values.shape[2:]))

    return packed
