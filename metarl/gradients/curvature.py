"""Second derivatives of an inner loop: Hessian and Gauss-Newton products, and the Jacobian of the adaptation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metarl.core.trees import tree_map, tree_zip
from metarl.gradients.adaptation import (
    LEARNED_STEP_SIZE,
    Parameters,
    StepSize,
    TaskLoss,
    adaptable_names,
    scaled,
    step_sizes_of,
)
from metarl.gradients.lifting import chunk_slices, lifted, side_by_side, take


class TaskHessians:
    """v -> H_i v for every task i, H_i the Hessian of task i's loss, from gradient graphs that are built once.

    Attributes:
        losses: [num_tasks].
        gradients: of each task's loss, task axis leading.
        parameters: where the Hessian was taken.
    """

    def __init__(self, loss: TaskLoss, parameters: Parameters, batch: Any, *, chunk_size: int | None = None) -> None:
        """Builds the graphs.

        Args:
            loss: scalar loss of one task.
            parameters: where the Hessian is taken, task axis leading; learned step sizes are passed over.
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

    def _graph(self, parameters: Parameters, batch: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
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


class TaskOutputs:
    """What a function of parameters and data gives for every task, and products with its Jacobian J_i.

    The graphs are built once, so a loss of the outputs costs no further pass through the function: its gradient is
    `pull(d loss / d outputs)`, and its Gauss-Newton product J_i^T M_i J_i v (the Hessian, where the loss is at its
    minimum over the outputs) one pass forward and one back.

    Attributes:
        values: the outputs, detached, task axis leading.
    """

    def __init__(
        self,
        function: Callable[[Parameters, Any], Any],
        parameters: Parameters,
        batch: Any,
        *,
        chunk_size: int | None = None,
    ) -> None:
        """Runs the function.

        Args:
            function: of ONE task's parameters and data; returns a tuple or named tuple of tensors.
            parameters: where its Jacobian is taken, task axis leading; learned step sizes are passed over.
            batch: data, task axis leading.
            chunk_size: tasks per graph at most.
        """
        self._function = lifted(function)
        self._names = adaptable_names(parameters)
        self._slices = list(chunk_slices(parameters, chunk_size))
        self._graphs = side_by_side([partial(self._graph, *take((parameters, batch), c)) for c in self._slices])
        values = [tree_map(Tensor.detach, outputs) for _, outputs in self._graphs]
        self.values = values[0] if len(values) == 1 else tree_zip(torch.cat, values)

    def pull(self, cotangents: Any) -> Parameters:
        """J^T u for `cotangents` u of the outputs' structure; task axis leading."""
        jobs = [
            partial(_pull, *graph, take(tuple(cotangents), chunk))
            for graph, chunk in zip(self._graphs, self._slices, strict=True)
        ]
        return _joined(self._names, side_by_side(jobs))

    def gauss_newton(self, loss: Callable[[Any, Any], Tensor], batch: Any) -> Callable[[Parameters], Parameters]:
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

    def _graph(self, parameters: Parameters, batch: Any) -> tuple[list[Tensor], Any]:
        points = [parameters[name].detach().contiguous().requires_grad_() for name in self._names]
        with torch.enable_grad():
            return points, self._function(dict(zip(self._names, points, strict=True)), batch)


class AdaptationJacobian:
    """J_i = d theta_i' / d theta_i of a whole inner loop, as the product of its steps' factors (I - A_k H_ik).

    A_k is the diagonal of step sizes and H_ik the Hessian of task i's loss at the parameters before step k. Where the
    parameters hold learned step sizes a, which all steps share, every factor has two more blocks: it takes (theta, a)
    to itself by [[I - A_k H_ik, -G_ik], [0, I]], with G_ik the diagonal of the gradient times the step's own scale.

    A Gauss-Newton product through the inner loop is `pull(F(push(v)))`: positive semi-definite whenever F is, whatever
    part of the data H was estimated on. With no factors (first order) it is the identity.
    """

    def __init__(self, hessians: Sequence[TaskHessians], step_sizes: Sequence[StepSize]) -> None:
        self._factors = [
            (hessian, step_sizes_of(hessian.parameters, step_size))
            for hessian, step_size in zip(hessians, step_sizes, strict=True)
        ]

    def first(self, num_steps: int) -> AdaptationJacobian:
        """Of the first `num_steps` steps alone."""
        part = AdaptationJacobian([], [])
        part._factors = self._factors[:num_steps]
        return part

    def push(self, tangents: Parameters) -> Parameters:
        """J v, task axis leading."""
        for hessian, scales in self._factors:
            curved, moved = hessian(tangents), {}
            for name, scale in scales.items():
                moved[name] = tangents[name] - scaled(curved[name], scale, hessian.parameters, name)
                learned = LEARNED_STEP_SIZE + name
                if learned in hessian.parameters:
                    moved[name] = moved[name] - scale * hessian.gradients[name] * tangents[learned]
            tangents = {**tangents, **moved}
        return tangents

    def pull(self, cotangents: Parameters) -> Parameters:
        """J^T u, task axis leading; learned step sizes that `cotangents` lacks are taken to be zero there."""
        for hessian, scales in reversed(self._factors):
            still = [name for name in adaptable_names(hessian.parameters) if name not in scales]
            stepped, moved = {name: torch.zeros_like(cotangents[name]) for name in still}, {}
            for name, scale in scales.items():
                stepped[name] = scaled(cotangents[name], scale, hessian.parameters, name)
                learned = LEARNED_STEP_SIZE + name
                if learned in hessian.parameters:
                    step = scale * hessian.gradients[name] * cotangents[name]
                    moved[learned] = cotangents[learned] - step if learned in cotangents else -step
            products = hessian(stepped)
            moved |= {name: cotangents[name] - products[name] for name in products}
            cotangents = {**cotangents, **moved}
        return cotangents


def _pull(points: list[Tensor], outputs: Any, cotangents: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.autograd.grad(tuple(outputs), points, cotangents, retain_graph=True, materialize_grads=True)


def _gauss_newton(
    points: list[Tensor], outputs: Any, loss: Callable[[Any, Any], Tensor], batch: Any
) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """One chunk's product; every factor is the derivative of a graph that is built here."""
    duals = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    at = tree_map(lambda output: output.detach().requires_grad_(), outputs)
    with torch.enable_grad():
        # J^T u as a function of u is linear: its derivative along v is J v.
        pulled = torch.autograd.grad(tuple(outputs), points, duals, create_graph=True, materialize_grads=True)
        slopes = torch.autograd.grad(loss(at, batch).sum(), tuple(at), create_graph=True, materialize_grads=True)

    def product(vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        tangents = torch.autograd.grad(pulled, duals, vectors, retain_graph=True, materialize_grads=True)
        curved = torch.autograd.grad(slopes, tuple(at), tangents, retain_graph=True, materialize_grads=True)
        return _pull(points, outputs, curved)

    return product


def _joined(names: Sequence[str], chunks: Sequence[Sequence[Tensor]]) -> Parameters:
    return {name: torch.cat(parts) for name, parts in zip(names, zip(*chunks, strict=True), strict=True)}
