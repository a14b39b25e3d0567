"""The inner loop and its derivatives against closed forms, finite differences and plain autograd, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from metarl.gradients.adaptation import Parameters, adapt, gradient_step
from metarl.gradients.curvature import AdaptationJacobian, TaskHessians, TaskOutputs
from metarl.gradients.lifting import chunk_length, over_tasks

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


def flat(tree: Parameters) -> Tensor:
    return torch.cat([value.reshape(-1) for value in tree.values()])


def unflat(vector: Tensor) -> Parameters:
    return {"theta": vector[:3], "bias": vector[3:]}


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
    start = flat(parameters(generator)).requires_grad_()

    def meta_gradient(first_order: bool) -> Tensor:
        adapted = gradient_step(loss, unflat(start), support, ALPHA, first_order=first_order)
        return torch.autograd.grad(loss(adapted, query), start, materialize_grads=True)[0]

    adapted = flat(gradient_step(loss, unflat(start), support, ALPHA)).detach().requires_grad_()
    (g1,) = torch.autograd.grad(loss(unflat(adapted), query), adapted, materialize_grads=True)
    hessian = torch.autograd.functional.hessian(lambda v: loss(unflat(v), support), start.detach())
    torch.testing.assert_close(meta_gradient(True), g1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        meta_gradient(False), (torch.eye(6, dtype=torch.float64) - ALPHA * hessian) @ g1, rtol=1e-12, atol=1e-12
    )

    def objective(vector: Tensor) -> float:
        return float(loss(gradient_step(loss, unflat(vector), support, ALPHA), query))

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
        return flat(torch.func.grad(curved)(at, batch))

    hessians = [
        torch.autograd.functional.hessian(lambda v, b=batch: curved(unflat(v), b), flat(start)) for batch in batches
    ]
    pairs = [(i, j) for i, j in itertools.product(range(4), repeat=2) if i != j]
    average = torch.stack([gradient(start, batches[j]) for _, j in pairs]).mean(0)
    inner = torch.stack([hessians[j] @ gradient(start, batches[i]) for i, j in pairs]).mean(0)

    def errors(alpha: float) -> list[float]:
        maml, fomaml, reptile = [], [], []
        for i, j in pairs:
            point = flat(start).requires_grad_()
            adapted = gradient_step(curved, unflat(point), batches[i], alpha)
            maml.append(torch.autograd.grad(curved(adapted, batches[j]), point)[0])
            detached = {name: value.detach() for name, value in adapted.items()}
            fomaml.append(gradient(detached, batches[j]))
            twice = gradient_step(curved, detached, batches[j], alpha)
            reptile.append((flat(start) - flat(twice)) / alpha)
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


LEARNED = ("step_size.theta", "step_size.bias")


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("kind", ["one size", "some adapt", "learned", "learned by some"])
def test_jacobian_products_equal_autograd_through_the_inner_loop(num_steps: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(4)
    num_tasks = 4
    supports = []
    for _ in range(num_steps):
        tasks = [data(generator) for _ in range(num_tasks)]
        supports.append((torch.stack([t[0] for t in tasks]), torch.stack([t[1] for t in tasks])))

    def tree() -> Parameters:
        found = parameters(generator, num_tasks)
        if kind.startswith("learned"):
            sizes = parameters(generator, num_tasks)
            names = LEARNED if kind == "learned" else LEARNED[:1]
            found |= {name: sizes[name.removeprefix("step_size.")] for name in names}
        return found

    start, tangents, cotangents = tree(), tree(), tree()
    sizes = [{"theta": 0.07} if kind == "some adapt" else 0.1 / (k + 1) for k in range(num_steps)]
    hessians, state = [], start
    for support, size in zip(supports, sizes, strict=True):
        hessians.append(TaskHessians(curved, state, support, chunk_size=2))
        state = adapt(curved, state, support, size, chunk_size=2)
    jacobian = AdaptationJacobian(hessians, sizes)
    pushed, pulled = jacobian.push(tangents), jacobian.pull(cotangents)
    without = {name: value for name, value in cotangents.items() if name not in LEARNED}
    begun = {name: value if name in without else torch.zeros_like(value) for name, value in cotangents.items()}
    for name, value in jacobian.pull(without).items():
        torch.testing.assert_close(value, jacobian.pull(begun)[name], rtol=0, atol=0)
    assert list(pulled) == list(pushed) == list(start)
    for i in range(num_tasks):

        def inner(*values: Tensor, task: int = i) -> Tensor:
            current = dict(zip(start, values, strict=True))
            for (matrix, target), size in zip(supports, sizes, strict=True):
                current = gradient_step(curved, current, (matrix[task], target[task]), size)
            return flat(current)

        def of_task(tree: Parameters, task: int = i) -> Tensor:
            return flat({name: value[task] for name, value in tree.items()})

        blocks = torch.autograd.functional.jacobian(inner, tuple(value[i] for value in start.values()))
        matrix = torch.cat(blocks, dim=1)
        torch.testing.assert_close(of_task(pushed), matrix @ of_task(tangents), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(of_task(pulled), matrix.T @ of_task(cotangents), rtol=1e-10, atol=1e-10)


def test_the_first_steps_of_a_jacobian() -> None:
    generator = torch.Generator().manual_seed(4)
    points, vector = [parameters(generator, 2) for _ in range(3)], parameters(generator, 2)
    tasks = [data(generator) for _ in range(2)]
    batch = (torch.stack([t[0] for t in tasks]), torch.stack([t[1] for t in tasks]))
    hessians = [TaskHessians(curved, point, batch) for point in points]
    jacobian = AdaptationJacobian(hessians, [0.1, 0.2, 0.3])
    expected = AdaptationJacobian(hessians[:2], [0.1, 0.2]).pull(vector)
    for name, value in jacobian.first(2).pull(vector).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert jacobian.first(0).pull(vector) is vector


def test_hessians_hold_losses_and_gradients() -> None:
    generator = torch.Generator().manual_seed(5)
    tasks = [data(generator) for _ in range(3)]
    batch = (torch.stack([t[0] for t in tasks]), torch.stack([t[1] for t in tasks]))
    start = parameters(generator, 3)
    hessians = TaskHessians(curved, start, batch, chunk_size=2)
    torch.testing.assert_close(hessians.losses, over_tasks(curved, start, batch))
    expected = over_tasks(torch.func.grad(curved), start, batch)
    for name, value in expected.items():
        torch.testing.assert_close(hessians.gradients[name], value)


def test_an_empty_jacobian_is_the_identity() -> None:
    tree = parameters(torch.Generator().manual_seed(6), 2)
    jacobian = AdaptationJacobian([], [])
    assert jacobian.push(tree) is tree
    assert jacobian.pull(tree) is tree


def test_chunks_have_one_size() -> None:
    assert [chunk_length(20, limit) for limit in (None, 1, 3, 4, 7, 19, 99)] == [20, 1, 2, 4, 5, 10, 20]
    assert chunk_length(7, 4) == 1


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
