from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from metarl.core.trees import leaves, tensors_in, to_device, tree_map, tree_zip


class Pair(NamedTuple):
    left: Tensor
    right: Any


@dataclass(frozen=True)
class Box:
    content: Any
    label: str = "kept"


def tree(offset: float) -> Box:
    def leaf(number: float) -> Tensor:
        return torch.tensor([number + offset])

    return Box({"pair": Pair(leaf(1.0), [leaf(2.0), (leaf(3.0), None)]), "inner": Box(leaf(4.0), "deep")}, "top")


def test_tree_map_reaches_every_tensor_and_keeps_the_structure() -> None:
    mapped = tree_map(lambda tensor: 10 * tensor, tree(0.0))
    assert isinstance(mapped, Box)
    pair = mapped.content["pair"]
    assert isinstance(pair, Pair)
    assert isinstance(pair.right, list)
    assert isinstance(pair.right[1], tuple)
    found = [pair.left, pair.right[0], pair.right[1][0], mapped.content["inner"].content]
    assert [float(value) for value in found] == [10.0, 20.0, 30.0, 40.0]
    assert pair.right[1][1] is None
    assert (mapped.label, mapped.content["inner"].label) == ("top", "deep")


def test_tree_map_leaves_its_input_alone() -> None:
    given = tree(0.0)
    tree_map(lambda tensor: 10 * tensor, given)
    assert float(given.content["pair"].left) == 1.0


def test_tree_zip_joins_what_stands_in_the_same_place() -> None:
    parts = [tree(offset).content["pair"] for offset in (0.0, 100.0)]
    joined = tree_zip(torch.cat, [{"pair": part} for part in parts])["pair"]
    assert isinstance(joined, Pair)
    assert joined.left.tolist() == [1.0, 101.0]
    assert isinstance(joined.right, list)
    assert joined.right[0].tolist() == [2.0, 102.0]
    assert joined.right[1][0].tolist() == [3.0, 103.0]
    assert joined.right[1][1] is None


def test_tree_zip_refuses_tuples_of_different_length() -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="differ in structure"):
        tree_zip(torch.cat, [(one, one), (one,)])


def test_a_leaf_has_its_place_as_name() -> None:
    found = {name: leaf for name, leaf in leaves(tree(0.0)) if not isinstance(leaf, Tensor)}
    assert found == {"content.pair.right.1.1": None, "content.inner.label": "deep", "label": "top"}
    names = [name for name, _ in tensors_in(tree(0.0), "x")]
    inside = ("pair.left", "pair.right.0", "pair.right.1.0", "inner.content")
    assert names == [f"x.content.{name}" for name in inside]
    assert [name for name, _ in tensors_in(torch.zeros(1), "x")] == ["x"]


def test_nothing_reads_the_cpus_copy_before_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from a GPU that does not wait may be used half-filled."""
    seen: list[object] = []
    move = torch.Tensor.to

    def to(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.append(kwargs.get("non_blocking", False))
        return move(tensor, *args, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch.Tensor, "to", to)
    to_device(torch.zeros(2), "cpu")
    assert seen == [False]
