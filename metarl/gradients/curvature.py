"""Second derivatives of one task's functions, for all tasks at once: Hessian and Gauss-Newton products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from metarl.core.trees import tree_map
from metarl.gradients.adaptation import Batch, Parameters, TaskLoss, adaptable_names
from metarl.gradients.lifting import chunk_slices, lifted, rejoined, side_by_side, take

Outputs = TypeVar("Outputs", bound="tuple[Tensor, ...]")


class TaskHessians:
    """v -> H_i v for every task i, with H_i the Hessian of task i's loss. The graphs of the gradients are built once.

    Attributes:
        losses: [num_tasks].
        gradients: of each task's loss, task axis leading.
        parameters: where the Hessian was taken.
    """

    def __init__(
        self, loss: TaskLoss[Batch], parameters: Parameters, batch: Batch, *, chunk_size: int | None = None
    ) -> None:
        """Builds the graphs.

        Args:
            loss: scalar loss of one task.
            parameters: where the Hessian is taken, task axis leading. Learned step sizes among them are left out.
            batch: data, task axis leading.
            chunk_size: tasks per graph at most.
        """
        self.parameters = parameters
        self._loss = lifted(loss)
        self._names = adaptable_names(parameters)
        chunks = list(chunk_slices(parameters, chunk_size))
        built = side_by_side([partial(self._graph, *take((parameters, batch), chunk)) for chunk in chunks])
        self._chunks = [(chunk, points, gradients) for chunk, (_, points, gradients) in zip(chunks, built, strict=True)]
        self.losses = torch.cat([losses for losses, _, _ in built])
        self.gradients = _joined(self._names, [[g.detach() for g in gradients] for _, _, gradients in self._chunks])

    def __call__(self, vectors: Parameters) -> Parameters:
        """The products, task axis leading."""
        return _joined(self._names, side_by_side([partial(self._product, vectors, *chunk) for chunk in self._chunks]))

    def _graph(self, parameters: Parameters, batch: object) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        points = [parameters[name].detach().contiguous().requires_grad_() for name in self._names]
        with torch.enable_grad():
            losses = self._loss(dict(zip(self._names, points, strict=True)), batch)
            gradients = torch.autograd.grad(losses.sum(), points, create_graph=True)
        return losses.detach(), points, list(gradients)

    def _product(
        self, vectors: Parameters, chunk: slice, points: list[Tensor], gradients: list[Tensor]
    ) -> tuple[Tensor, ...]:
        outputs = [vectors[name][chunk] for name in self._names]
        return torch.autograd.grad(gradients, points, outputs, retain_graph=True, materialize_grads=True)


class TaskOutputs(Generic[Outputs]):
    """The outputs of a function of parameters and data for every task i, and products with their Jacobian J_i.

    The graphs are built once, so a loss of the outputs needs no further pass through the function. Its gradient is
    `pull(d loss / d outputs)`. Its Gauss-Newton product J_i^T M_i J_i v costs one pass forward and one back. Where the
    loss is at its minimum over the outputs, this is the product with the loss's Hessian.

    Attributes:
        values: the outputs, detached, task axis leading.
    """

    def __init__(
        self,
        function: Callable[[Parameters, Batch], Outputs],
        parameters: Parameters,
        batch: Batch,
        *,
        chunk_size: int | None = None,
    ) -> None:
        """Runs the function.

        Args:
            function: of ONE task's parameters and data; returns a tuple or named tuple of tensors.
            parameters: where its Jacobian is taken, task axis leading. Learned step sizes among them are left out.
            batch: data, task axis leading.
            chunk_size: tasks per graph at most.
        """
        self._function = lifted(function)
        self._names = adaptable_names(parameters)
        self._slices = list(chunk_slices(parameters, chunk_size))
        self._graphs = side_by_side([partial(self._graph, *take((parameters, batch), c)) for c in self._slices])
        self.values: Outputs = rejoined([tree_map(Tensor.detach, outputs) for _, outputs in self._graphs])

    def pull(self, cotangents: Outputs) -> Parameters:
        """J^T u for `cotangents` u with the structure of the outputs; task axis leading."""
        jobs = [
            partial(_pull, *graph, take(tuple(cotangents), chunk))
            for graph, chunk in zip(self._graphs, self._slices, strict=True)
        ]
        return _joined(self._names, side_by_side(jobs))

    def gauss_newton(
        self, loss: Callable[[Outputs, Batch], Tensor], batch: Batch
    ) -> Callable[[Parameters], Parameters]:
        """v -> J^T M J v, M the Hessian of one task's `loss(outputs, batch)` in the outputs; task axis leading."""
        of_chunk = lifted(loss)
        jobs = [
            partial(_gauss_newton, *graph, of_chunk, take(batch, chunk))
            for graph, chunk in zip(self._graphs, self._slices, strict=True)
        ]
        products = side_by_side(jobs)

        def product(vectors: Parameters) -> Parameters:
            parts = ([vectors[name][chunk] for name in self._names] for chunk in self._slices)
            return _joined(
                self._names, side_by_side([partial(f, part) for f, part in zip(products, parts, strict=True)])
            )

        return product

    def _graph(self, parameters: Parameters, batch: object) -> tuple[list[Tensor], Outputs]:
        points = [parameters[name].detach().contiguous().requires_grad_() for name in self._names]
        with torch.enable_grad():
            return points, self._function(dict(zip(self._names, points, strict=True)), batch)


def _pull(points: list[Tensor], outputs: tuple[Tensor, ...], cotangents: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.autograd.grad(outputs, points, cotangents, retain_graph=True, materialize_grads=True)


def _gauss_newton(
    points: list[Tensor], outputs: Outputs, loss: Callable[[Outputs, Batch], Tensor], batch: Batch
) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """One chunk's product; its factors are derivatives of graphs that are built here."""
    duals = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    at = tree_map(lambda output: output.detach().requires_grad_(), outputs)
    with torch.enable_grad():
        # J^T u as a function of u is linear: its derivative along v is J v.
        pulled = torch.autograd.grad(outputs, points, duals, create_graph=True, materialize_grads=True)
        slopes = torch.autograd.grad(loss(at, batch).sum(), at, create_graph=True, materialize_grads=True)

    def product(vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        tangents = torch.autograd.grad(pulled, duals, vectors, retain_graph=True, materialize_grads=True)
        curved = torch.autograd.grad(slopes, at, tangents, retain_graph=True, materialize_grads=True)
        return _pull(points, outputs, curved)

    return product


def _joined(names: Sequence[str], chunks: Sequence[Sequence[Tensor]]) -> Parameters:
    return {name: torch.cat(parts) for name, parts in zip(names, zip(*chunks, strict=True), strict=True)}
