"""Compiles a function by torch.compile, once for each shape and device of its arguments."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from metarl.core.errors import one_line

_logger = logging.getLogger(__name__)

Graph = Callable[[list[Tensor]], Sequence[Tensor]]
Result = TypeVar("Result")


class Compiled(Generic[Result]):
    """A function as one compiled graph of tensor operations, derivatives included.

    The graph stores everything except the arguments as constants. So the function must read nothing else that changes.
    Without a C++ compiler the graph runs uncompiled, and one line says so.

    Args:
        function: takes trees of tensors and returns one. It may use `torch.func`.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function = function
        self._graphs: dict[Hashable, tuple[Graph, TreeSpec]] = {}

    def __call__(self, *arguments: object) -> Result:
        """Calls the compiled function. `prepare` must have been called with arguments of the same shapes."""
        leaves, structure = tree_flatten(arguments)
        graph, result = self._graphs[_key(leaves, structure)]
        with torch.no_grad():
            outputs: Result = tree_unflatten(list(graph(leaves)), result)
        return outputs

    def prepare(self, *arguments: object) -> None:
        """Compiles for arguments of these shapes, on one thread, since each task runs on one thread."""
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
            warnings.filterwarnings("ignore", module=r"torch\._inductor")  # hints for tuning
            traced = make_fx(flat)(leaves)
            compiled = torch.compile(traced, fullgraph=True, dynamic=False)
            try:
                compiled(leaves)
            except Exception as error:  # a compiler may raise anything; the traced graph gives the same numbers
                _logger.warning("agent.execution = 'compiled': not compiled, the tasks run slower: %s", one_line(error))
                return traced, results[0]
        return compiled, results[0]


def _key(leaves: list[Tensor], structure: TreeSpec) -> Hashable:
    return (structure, *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves))
