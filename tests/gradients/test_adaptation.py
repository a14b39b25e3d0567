"""Adaptation steps and gradients through them against closed forms and finite differences, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarl.gradients.adaptation import Parameters, adapt, gradient_step
from metarl.gradients.vectors import flatten, unflatten

ALPHA = 0.1


def quadratic(parameters: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
    matrix, target = batch
    offset = parameters["theta"] - target
    return 0.5 * offset @ matrix @ offset


def curved(parameters: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
    matrix, target = batch
    hidden = torch.tanh(matrix @ parameters["theta"] + parameters["bias"].exp())
    return (hidden - target).square().sum() + (parameters["theta"].sin() * target).sum()


def data(generator: torch.Generator, size: int = 3) -> tuple[Tensor, Tensor]:
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.T, torch.randn(size, generator=generator, dtype=torch.float64)


def parameters(generator: torch.Generator, *leading: int) -> Parameters:
    return {
        "theta": torch.randn(*leading, 3, generator=generator, dtype=torch.float64),
        "bias": torch.randn(*leading, 3, generator=generator, dtype=torch.float64) * 0.3,
    }


LIKE = parameters(torch.Generator())


def test_worked_one_dimensional_case() -> None:
    # L0 = (theta - 2)^2 / 2, L1 = (theta - 5)^2 / 2, theta = 1, alpha = 0.5: theta' = 1.5, g = (1 - 0.5)(1.5 - 5) =
    # -1.75.
    one = torch.ones(1, 1, dtype=torch.float64)
    theta = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    for first_order, expected in ((False, -1.75), (True, -3.5)):
        adapted = gradient_step(quadratic, {"theta": theta}, (one, 2.0 * one[0]), 0.5, first_order=first_order)
        assert float(adapted["theta"].detach()) == 1.5
        (gradient,) = torch.autograd.grad(quadratic(adapted, (one, 5.0 * one[0])), theta)
        assert float(gradient) == expected


@pytest.mark.parametrize("loss", [quadratic, curved])
def test_maml_is_jacobian_times_first_order_gradient(loss: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    support, query = data(generator), data(generator)
    start = flatten(parameters(generator)).requires_grad_()

    def meta_gradient(first_order: bool) -> Tensor:
        adapted = gradient_step(loss, unflatten(start, LIKE), support, ALPHA, first_order=first_order)
        return torch.autograd.grad(loss(adapted, query), start, materialize_grads=True)[0]

    adapted = flatten(gradient_step(loss, unflatten(start, LIKE), support, ALPHA)).detach().requires_grad_()
    (g1,) = torch.autograd.grad(loss(unflatten(adapted, LIKE), query), adapted, materialize_grads=True)
    hessian = torch.autograd.functional.hessian(lambda v: loss(unflatten(v, LIKE), support), start.detach())
    torch.testing.assert_close(meta_gradient(True), g1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        meta_gradient(False), (torch.eye(6, dtype=torch.float64) - ALPHA * hessian) @ g1, rtol=1e-12, atol=1e-12
    )

    def objective(vector: Tensor) -> float:
        return float(loss(gradient_step(loss, unflatten(vector, LIKE), support, ALPHA), query))

    for axis in range(6):
        shift = torch.zeros(6, dtype=torch.float64)
        shift[axis] = 1e-6
        numeric = (objective(start.detach() + shift) - objective(start.detach() - shift)) / 2e-6
        assert abs(numeric - float(meta_gradient(False)[axis])) < 1e-7 * max(1.0, abs(numeric))


def test_taylor_forms_of_maml_fomaml_and_reptile() -> None:
    """Nichol et al. 2018, arXiv:1803.02999, equations 26-31, with expectations over every pair of minibatches."""
    generator = torch.Generator().manual_seed(1)
    batches = [data(generator) for _ in range(4)]
    start = parameters(generator)

    def gradient(at: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
        return flatten(torch.func.grad(curved)(at, batch))

    hessians = [
        torch.autograd.functional.hessian(lambda v, b=batch: curved(unflatten(v, LIKE), b), flatten(start))
        for batch in batches
    ]
    pairs = [(i, j) for i, j in itertools.product(range(4), repeat=2) if i != j]
    average = torch.stack([gradient(start, batches[j]) for _, j in pairs]).mean(0)
    inner = torch.stack([hessians[j] @ gradient(start, batches[i]) for i, j in pairs]).mean(0)

    def errors(alpha: float) -> list[float]:
        maml, fomaml, reptile = [], [], []
        for i, j in pairs:
            point = flatten(start).requires_grad_()
            adapted = gradient_step(curved, unflatten(point, LIKE), batches[i], alpha)
            maml.append(torch.autograd.grad(curved(adapted, batches[j]), point)[0])
            detached = {name: value.detach() for name, value in adapted.items()}
            fomaml.append(gradient(detached, batches[j]))
            twice = gradient_step(curved, detached, batches[j], alpha)
            reptile.append((flatten(start) - flatten(twice)) / alpha)
        forms = (average - 2 * alpha * inner, average - alpha * inner, 2 * average - alpha * inner)
        return [
            float((torch.stack(sample).mean(0) - form).norm())
            for sample, form in zip((maml, fomaml, reptile), forms, strict=True)
        ]

    for coarse, fine in zip(errors(2e-3), errors(1e-3), strict=True):
        assert fine < 1e-3
        assert 3.5 < coarse / fine < 4.5  # what is left is of second order in alpha


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_lifted_steps_equal_the_loop_over_tasks(chunk_size: int | None) -> None:
    generator = torch.Generator().manual_seed(2)
    tasks = [data(generator) for _ in range(4)]
    batch = (torch.stack([t[0] for t in tasks]), torch.stack([t[1] for t in tasks]))
    start = parameters(generator, 4)
    start["step_size.theta"] = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    lifted = adapt(curved, start, batch, 0.03, chunk_size=chunk_size)
    for i in range(4):
        single = gradient_step(curved, {name: value[i] for name, value in start.items()}, tasks[i], 0.03)
        for name, value in single.items():
            torch.testing.assert_close(lifted[name][i], value, rtol=1e-12, atol=1e-12)


def test_a_step_with_learned_step_sizes_is_the_gradient_times_them() -> None:
    generator = torch.Generator().manual_seed(3)
    start, batch = parameters(generator), data(generator)
    sizes = torch.tensor([0.5, 0.0, -2.0], dtype=torch.float64)
    adapted = gradient_step(curved, {**start, "step_size.theta": sizes}, batch, 0.1)
    gradient = torch.func.grad(curved)(start, batch)
    torch.testing.assert_close(adapted["theta"], start["theta"] - 0.1 * sizes * gradient["theta"], rtol=0, atol=1e-15)
    torch.testing.assert_close(adapted["bias"], start["bias"] - 0.1 * gradient["bias"], rtol=0, atol=1e-15)
    assert adapted["step_size.theta"] is sizes


def test_parameters_without_a_step_size_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(3)
    start, batch = parameters(generator), data(generator)
    adapted = gradient_step(curved, start, batch, {"bias": 0.2})
    assert adapted["theta"] is start["theta"]
    torch.testing.assert_close(adapted["bias"], gradient_step(curved, start, batch, 0.2)["bias"], rtol=0, atol=0)


def test_step_sizes_are_differentiable() -> None:
    generator = torch.Generator().manual_seed(3)
    support, query = data(generator), data(generator)
    start = parameters(generator)

    def after(size: Tensor) -> Tensor:
        return curved(gradient_step(curved, {**start, "step_size.theta": size}, support, 0.5), query)

    sizes = torch.tensor([0.05, -0.02, 0.1], dtype=torch.float64)
    (analytic,) = torch.autograd.grad(after(leaf := sizes.clone().requires_grad_()), leaf)
    for axis in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[axis] = 1e-6
        numeric = (float(after(sizes + shift)) - float(after(sizes - shift))) / 2e-6
        assert float(analytic[axis]) == pytest.approx(numeric, rel=1e-6)
