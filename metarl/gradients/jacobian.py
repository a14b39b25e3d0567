"""The Jacobian of an adaptation: products that carry derivatives through all its steps.

The meta-gradient of MAML is such a product, and so is the curvature of its trust region.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from metarl.gradients.adaptation import (
    LEARNED_STEP_SIZE,
    Parameters,
    StepSize,
    adaptable_names,
    scaled,
    step_sizes_of,
)
from metarl.gradients.curvature import TaskHessians
from metarl.gradients.lifting import num_tasks_of
from metarl.gradients.vectors import unflatten


class AdaptationJacobian:
    """J_i = d theta_i' / d theta_i of all steps of task i's adaptation, the product of one factor a step.

    Step k has the factor I - A_k H_ik. A_k is the diagonal matrix of the step sizes. H_ik is the Hessian of task i's
    loss at the parameters before the step.

    The parameters may hold learned step sizes a, which all steps share. Each factor then maps (theta, a) to
    (theta', a): it is [[I - A_k H_ik, -G_ik], [0, I]]. G_ik is the diagonal matrix of the gradient times the step's own
    step size.

    A Gauss-Newton product through the adaptation is `pull(F(push(v)))`. It is positive semi-definite whenever F is,
    also if H was estimated on a part of the data.

    Args:
        hessians: of each step. An empty sequence gives the identity, the Jacobian of first-order MAML.
        step_sizes: of each step.
    """

    def __init__(self, hessians: Sequence[TaskHessians], step_sizes: Sequence[StepSize]) -> None:
        self._factors = [
            (hessian, step_sizes_of(hessian.parameters, step_size))
            for hessian, step_size in zip(hessians, step_sizes, strict=True)
        ]

    def first(self, num_steps: int) -> AdaptationJacobian:
        """The Jacobian of the first `num_steps` steps."""
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
        """J^T u, task axis leading; a learned step size that `cotangents` lacks counts as zero."""
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


class MetaJacobian:
    """The derivative of every task's adapted parameters with respect to the meta-parameters, which are a flat vector.

    Args:
        jacobian: of the adaptation.
        parameters: the meta-parameters; their order is that of the vector.
        begin: meta-parameters -> the state before adaptation, task axis leading. What it adds to the meta-parameters
            must start at zero.
    """

    def __init__(
        self,
        jacobian: AdaptationJacobian,
        parameters: Mapping[str, Tensor],
        begin: Callable[[Mapping[str, Tensor]], Parameters],
    ) -> None:
        self._jacobian, self._parameters, self._begin = jacobian, parameters, begin

    def first(self, num_steps: int) -> MetaJacobian:
        """The derivative of the parameters after the first `num_steps` steps."""
        return MetaJacobian(self._jacobian.first(num_steps), self._parameters, self._begin)

    def push(self, vector: Tensor) -> Parameters:
        """J_i v for every task i, task axis leading; `vector` is v, a direction of the meta-parameters."""
        return self._jacobian.push(self._begin(unflatten(vector, self._parameters)))

    def pull(self, cotangents: Parameters) -> Tensor:
        """The mean over tasks of J_i^T u_i as a flat vector: the meta-gradient, if `cotangents` are gradients u_i."""
        values = self._jacobian.pull(cotangents)
        like = self._begin(self._parameters)
        parts = [values[name] if name in values else torch.zeros_like(like[name]) for name in self._parameters]
        return torch.cat([part.flatten(1) for part in parts], dim=1).sum(0) / num_tasks_of(like)
