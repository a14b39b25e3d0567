"""Conjugate gradient and the line search on problems with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metarl.gradients.trust_region import conjugate_gradient, trust_region_step

GENERATOR_SEED = 0


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    root = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    return root @ root.T + torch.eye(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64, generator=generator)


def test_conjugate_gradient_solves_in_as_many_steps_as_dimensions() -> None:
    matrix, target = problem()
    solution, residual = conjugate_gradient(lambda v: matrix @ v, target, iterations=6, tolerance=1e-20)
    torch.testing.assert_close(residual, target - matrix @ solution, rtol=0, atol=1e-8)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, target), rtol=1e-8, atol=1e-8)


def test_conjugate_gradient_stops_at_a_direction_without_curvature() -> None:
    target = torch.tensor([1.0, 0.0])
    solution, residual = conjugate_gradient(lambda v: -v, target, iterations=5)
    assert bool(solution.eq(0).all())
    assert torch.equal(residual, target)


def test_full_step_is_the_natural_gradient_scaled_to_the_constraint() -> None:
    matrix, gradient = problem()
    start = torch.zeros(6, dtype=torch.float64)

    def evaluate(vector: Tensor) -> tuple[float, float]:
        return float(gradient @ vector), float(0.5 * vector @ matrix @ vector) * (
            1.0 - 1e-6
        )  # rounding must not decide

    step = trust_region_step(
        start, 0.0, gradient, lambda v: matrix @ v, evaluate, max_kl=0.01, cg_damping=0.0, cg_iterations=20
    )
    natural = torch.linalg.solve(matrix, gradient)
    expected = natural * math.sqrt(0.02 / float(gradient @ natural))
    torch.testing.assert_close(step.vector, expected, rtol=1e-4, atol=1e-6)
    assert step.accepted
    assert step.backtracks == 0
    assert step.kl == pytest.approx(0.01, rel=1e-4)


def test_the_line_search_shrinks_until_the_constraint_holds() -> None:
    start, gradient = torch.zeros(1), torch.ones(1)

    def evaluate(vector: Tensor) -> tuple[float, float]:  # the true KL is four times its quadratic model
        return float(vector), float(2.0 * vector**2)

    step = trust_region_step(start, 0.0, gradient, lambda v: v, evaluate, max_kl=0.01, backtrack_ratio=0.8)
    assert step.accepted
    assert step.backtracks == 4  # 0.8^3 = 0.512 still breaks it, 0.8^4 = 0.41 holds
    assert step.kl <= 0.01


@pytest.mark.parametrize("bad", [(-1.0, 0.0), (1.0, 1.0), (math.nan, 0.0), (1.0, math.nan), (math.inf, 0.0)])
def test_a_bad_step_is_rejected(bad: tuple[float, float]) -> None:
    start = torch.tensor([3.0])

    def evaluate(vector: Tensor) -> tuple[float, float]:
        return (0.0, 0.0) if bool(vector == start) else bad

    step = trust_region_step(start, 0.0, torch.ones(1), lambda v: v, evaluate, max_kl=0.01)
    assert not step.accepted
    assert step.vector is start
    assert step.backtracks == 15


@pytest.mark.parametrize("gradient", [0.0, math.nan])
def test_no_step_without_a_usable_gradient(gradient: float) -> None:
    start = torch.tensor([3.0])
    step = trust_region_step(start, 0.0, torch.tensor([gradient]), lambda v: v, lambda _: (0.0, 0.0), max_kl=0.01)
    assert not step.accepted
    assert step.vector is start


@pytest.mark.parametrize("surrogate", [math.nan, -math.inf])
def test_a_surrogate_that_is_not_finite_to_begin_with_is_reported(surrogate: float) -> None:
    start = torch.tensor([3.0])
    step = trust_region_step(start, surrogate, torch.ones(1), lambda v: v, lambda _: (1.0, 0.0), max_kl=0.01)
    assert not step.accepted
    assert step.vector is start
    assert math.isnan(step.improvement)
