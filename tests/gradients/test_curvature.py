"""Hessians and Gauss-Newton products of several tasks against plain autograd, in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from metarl.gradients.adaptation import Parameters
from metarl.gradients.curvature import TaskHessians, TaskOutputs


def test_hessians_their_losses_and_gradients() -> None:
    rng = torch.Generator().manual_seed(5)
    w, x, v = (torch.randn(3, 4, generator=rng, dtype=torch.float64) for _ in range(3))

    def loss(parameters: Parameters, inputs: Tensor) -> Tensor:
        return (parameters["w"] * inputs).sin().sum()

    hessians = TaskHessians(loss, {"w": w}, x, chunk_size=2)
    torch.testing.assert_close(hessians.losses, (w * x).sin().sum(1))
    torch.testing.assert_close(hessians.gradients["w"], (w * x).cos() * x)
    torch.testing.assert_close(hessians({"w": v})["w"], -(w * x).sin() * x.square() * v)


class Outputs(NamedTuple):
    mean: Tensor
    scale: Tensor


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_products_with_the_jacobian_of_outputs_are_those_of_plain_autograd(chunk_size: int | None) -> None:
    rng = torch.Generator().manual_seed(3)
    parameters = {
        "w": torch.randn(4, 3, 2, generator=rng, dtype=torch.float64),
        "s": torch.randn(4, 2, generator=rng).double(),
    }
    inputs = torch.randn(4, 5, 3, generator=rng, dtype=torch.float64)
    vectors = {name: torch.randn(value.shape, generator=rng, dtype=torch.float64) for name, value in parameters.items()}

    def function(task: Parameters, x: Tensor) -> Outputs:
        return Outputs(torch.tanh(x @ task["w"]), task["s"].exp())

    def loss(outputs: Outputs, old: Outputs) -> Tensor:
        """At its minimum where outputs = old."""
        return ((outputs.mean - old.mean).square() * old.scale).sum() + (outputs.scale / old.scale).log().square().sum()

    outputs = TaskOutputs(function, parameters, inputs, chunk_size=chunk_size)
    cotangents = Outputs(*(torch.randn(value.shape, generator=rng, dtype=torch.float64) for value in outputs.values))
    pulled = outputs.pull(cotangents)
    products = outputs.gauss_newton(loss, outputs.values)(vectors)
    for task in range(4):
        own = {name: value[task].clone().requires_grad_() for name, value in parameters.items()}
        found = function(own, inputs[task])
        old = Outputs(*(value.detach() for value in found))
        for ours, expected in zip(outputs.values, old, strict=True):
            torch.testing.assert_close(ours[task], expected)
        gradients = torch.autograd.grad(tuple(found), [*own.values()], [u[task] for u in cotangents], create_graph=True)
        for name, expected in zip(own, gradients, strict=True):
            torch.testing.assert_close(pulled[name][task], expected)
        slopes = torch.autograd.grad(loss(function(own, inputs[task]), old), [*own.values()], create_graph=True)
        hessian = torch.autograd.grad(slopes, [*own.values()], [vectors[name][task] for name in own])
        for name, expected in zip(own, hessian, strict=True):
            torch.testing.assert_close(products[name][task], expected)
