"""A function of some tasks, traced once for each shape and device of its arguments and compiled by torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from metarl.core.errors import one_line

_logger = logging.getLogger(__name__)

Graph = Callable[[list[Tensor]], Any]


class Compiled:
    """`function` as one graph of tensor operations, its derivatives included, fused where a compiler is there.

    Everything but the arguments is taken as it is when a shape first comes: a function that reads what changes must not
    be compiled. Without a compiler the traced graph runs as it is, and one line says so.

    Args:
        function: of trees of tensors; returns a tree of tensors. It may use `torch.func`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._graphs: dict[Any, tuple[Graph, TreeSpec]] = {}

    def __call__(self, *arguments: Any) -> Any:
        leaves, structure = tree_flatten(arguments)
        graph, result = self._graphs[_key(leaves, structure)]
        with torch.no_grad():
            return tree_unflatten(list(graph(leaves)), result)

    def prepare(self, *arguments: Any) -> None:
        """Compiles for arguments of these shapes, on one thread, as the tasks' own threads will run it."""
        leaves, structure = tree_flatten(arguments)
        key = _key(leaves, structure)
        if key in self._graphs:
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._graphs[key] = self._compile(leaves, structure)
        finally:
            torch.set_num_threads(threads)

    def _compile(self, leaves: list[Tensor], structure: TreeSpec) -> tuple[Graph, TreeSpec]:
        results: list[TreeSpec] = []

        def flat(leaves: list[Tensor]) -> list[Tensor]:
            outputs, result = tree_flatten(self._function(*tree_unflatten(leaves, structure)))
            results.append(result)
            return outputs

        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\._inductor")  # advice to those who tune it
            traced = make_fx(flat)(leaves)
            compiled = torch.compile(traced, fullgraph=True, dynamic=False)
            try:
                compiled(leaves)
            except Exception as error:  # the compiler is foreign code: whatever stops it, the traced graph serves
                _logger.warning("agent.execution = 'compiled': not compiled, the tasks run slower: %s", one_line(error))
                return traced, results[0]
        return compiled, results[0]


def _key(leaves: list[Tensor], structure: TreeSpec) -> Any:
    return (structure, *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves))
