"""Trust-region steps on a flat parameter vector.

Reference: Schulman et al. 2015, arXiv:1502.05477, appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


class TrustRegionStep(NamedTuple):
    """The result of a trust-region step.

    Attributes:
        vector: the new parameters, or the old ones if no candidate was accepted.
        accepted: whether a candidate was accepted.
        improvement: increase of the surrogate.
        kl: between the old policies and those at `vector`.
        backtracks: number of rejected candidates.
    """

    vector: Tensor
    accepted: bool
    improvement: float
    kl: float
    backtracks: int


def conjugate_gradient(
    product: Product, target: Tensor, *, iterations: int, tolerance: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """Solves H x = target for a symmetric positive semi-definite H given as `product`.

    Args:
        product: x -> H x.
        target: [size].
        iterations: at most this many products.
        tolerance: stop once the squared residual is below it times the squared target.

    Returns:
        The solution in the Krylov space so far, [size], and its residual, target - H x, [size].
    """
    solution = torch.zeros_like(target)
    residual = target.clone()
    direction = target.clone()
    norm = residual @ residual
    threshold = tolerance * norm
    for _ in range(iterations):
        curved = product(direction)
        curvature = direction @ curved
        if not bool(curvature > 0):
            break
        step = norm / curvature
        solution = solution + step * direction
        residual = residual - step * curved
        new_norm = residual @ residual
        if bool(new_norm <= threshold):
            break
        direction = residual + (new_norm / norm) * direction
        norm = new_norm
    return solution, residual


def trust_region_step(
    vector: Tensor,
    surrogate: float,
    gradient: Tensor,
    product: Product,
    evaluate: Callable[[Tensor], tuple[float, float]],
    *,
    max_kl: float,
    cg_iterations: int = 10,
    cg_damping: float = 1e-5,
    max_backtracks: int = 15,
    backtrack_ratio: float = 0.8,
) -> TrustRegionStep:
    """Maximises a surrogate under a KL constraint.

    Args:
        vector: [size], the present parameters.
        surrogate: its value at `vector`.
        gradient: [size], of the surrogate at `vector`.
        product: direction -> curvature of the KL at `vector` times the direction.
        evaluate: candidate -> (surrogate, kl).
        max_kl: the constraint, nats.
        cg_iterations: conjugate-gradient iterations.
        cg_damping: added to the curvature's diagonal.
        max_backtracks: number of candidates at most.
        backtrack_ratio: size of each candidate's step relative to the one before, in (0, 1).

    Returns:
        The step. A candidate is accepted if its surrogate is larger and the constraint holds; both must be finite. If
        the surrogate at `vector` is not finite, `improvement` is NaN.
    """

    def damped(direction: Tensor) -> Tensor:
        return product(direction) + cg_damping * direction

    if not math.isfinite(surrogate):
        return TrustRegionStep(vector, False, math.nan, 0.0, 0)
    direction, residual = conjugate_gradient(damped, gradient, iterations=cg_iterations)
    curvature = float(direction @ (gradient - residual))  # H x, without another product
    if not curvature > 0.0:
        return TrustRegionStep(vector, False, 0.0, 0.0, 0)
    full_step = (2.0 * max_kl / curvature) ** 0.5 * direction
    for attempt in range(max_backtracks):
        candidate = vector + backtrack_ratio**attempt * full_step
        value, kl = evaluate(candidate)
        if surrogate < value < math.inf and kl <= max_kl:
            return TrustRegionStep(candidate, True, value - surrogate, kl, attempt)
    return TrustRegionStep(vector, False, 0.0, 0.0, max_backtracks)
