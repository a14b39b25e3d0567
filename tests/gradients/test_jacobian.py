"""The Jacobian of an adaptation against plain autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarl.gradients.adaptation import Parameters, adapt, gradient_step
from metarl.gradients.curvature import TaskHessians
from metarl.gradients.jacobian import AdaptationJacobian, MetaJacobian
from metarl.gradients.vectors import flatten, unflatten

LEARNED = ("step_size.theta", "step_size.bias")


def curved(parameters: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
    matrix, target = batch
    hidden = torch.tanh(matrix @ parameters["theta"] + parameters["bias"].exp())
    return (hidden - target).square().sum() + (parameters["theta"].sin() * target).sum()


def batch_of(num_tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    roots = torch.randn(num_tasks, 3, 3, generator=generator, dtype=torch.float64)
    return roots @ roots.mT, torch.randn(num_tasks, 3, generator=generator, dtype=torch.float64)


def parameters(generator: torch.Generator, *leading: int) -> Parameters:
    return {
        "theta": torch.randn(*leading, 3, generator=generator, dtype=torch.float64),
        "bias": torch.randn(*leading, 3, generator=generator, dtype=torch.float64) * 0.3,
    }


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("kind", ["one size", "some adapt", "learned", "learned by some"])
def test_jacobian_products_equal_autograd_through_the_inner_loop(num_steps: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(4)
    num_tasks = 4
    supports = []
    for _ in range(num_steps):
        supports.append(batch_of(num_tasks, generator))

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
            return flatten(current)

        def of_task(tree: Parameters, task: int = i) -> Tensor:
            return flatten({name: value[task] for name, value in tree.items()})

        blocks = torch.autograd.functional.jacobian(inner, tuple(value[i] for value in start.values()))
        matrix = torch.cat(blocks, dim=1)
        torch.testing.assert_close(of_task(pushed), matrix @ of_task(tangents), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(of_task(pulled), matrix.T @ of_task(cotangents), rtol=1e-10, atol=1e-10)


def test_the_first_steps_of_a_jacobian() -> None:
    generator = torch.Generator().manual_seed(4)
    points, vector = [parameters(generator, 2) for _ in range(3)], parameters(generator, 2)
    batch = batch_of(2, generator)
    hessians = [TaskHessians(curved, point, batch) for point in points]
    jacobian = AdaptationJacobian(hessians, [0.1, 0.2, 0.3])
    expected = AdaptationJacobian(hessians[:2], [0.1, 0.2]).pull(vector)
    for name, value in jacobian.first(2).pull(vector).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert jacobian.first(0).pull(vector) is vector


def test_an_empty_jacobian_is_the_identity() -> None:
    tree = parameters(torch.Generator().manual_seed(6), 2)
    jacobian = AdaptationJacobian([], [])
    assert jacobian.push(tree) is tree
    assert jacobian.pull(tree) is tree


def test_the_meta_jacobian_takes_vectors_of_meta_parameters_and_returns_means_over_tasks() -> None:
    generator = torch.Generator().manual_seed(7)
    num_tasks, batch = 3, batch_of(3, generator)
    meta = {"theta": parameters(generator)["theta"]}  # "bias" is adapted too; it starts at zero and is not learned

    def begin(values: Parameters) -> Parameters:
        theta = values["theta"].expand(num_tasks, 3)
        return {"theta": theta, "bias": torch.zeros_like(theta)}

    start = begin(meta)
    jacobian = MetaJacobian(AdaptationJacobian([TaskHessians(curved, start, batch)], [0.1]), meta, begin)

    def adapted(vector: Tensor) -> Tensor:
        state = begin(unflatten(vector, meta))
        return flatten(adapt(curved, state, batch, 0.1))

    matrix = torch.autograd.functional.jacobian(adapted, flatten(meta))
    vector, cotangents = torch.randn(3, generator=generator).double(), parameters(generator, num_tasks)
    torch.testing.assert_close(flatten(jacobian.push(vector)), matrix @ vector)
    torch.testing.assert_close(jacobian.pull(cotangents), flatten(cotangents) @ matrix / num_tasks)
    at_start = torch.stack([value.mean(0) for name, value in cotangents.items() if name == "theta"])
    torch.testing.assert_close(jacobian.first(0).pull(cotangents), flatten({"theta": at_start}))
