"""Gradient steps on named parameters, the inner loop of gradient-based meta-learning.

Losses are written for ONE task, `loss(parameters, batch) -> scalar`. A task's parameters are a dict of tensors. The
meta-batch has the same dict with the task axis leading. The dict may also hold learned step sizes, one number per
element of a parameter: "step_size.w" holds those of "w". They are meta-learned, and no adaptation changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from metarl.gradients.lifting import over_tasks

Parameters = dict[str, Tensor]
Batch = TypeVar("Batch")
TaskLoss = Callable[[Parameters, Batch], Tensor]
StepSize = float | Mapping[str, float]

LEARNED_STEP_SIZE = "step_size."


def gradient_step(
    loss: TaskLoss[Batch], parameters: Parameters, batch: Batch, step_size: StepSize, *, first_order: bool = False
) -> Parameters:
    """theta' = theta - step_size * grad loss(theta), for ONE task; differentiable in `parameters`.

    Args:
        loss: scalar loss of one task.
        parameters: that task's parameters. Learned step sizes among them multiply `step_size`.
        batch: that task's data.
        step_size: one number for all parameters, or one per name. In the second case, the other parameters do not move.
        first_order: treat the gradient as a constant. Only the gradient is detached: d theta'/d theta is the identity.

    Reference: Finn et al. 2017, arXiv:1703.03400, equation 1; Li et al. 2017, arXiv:1707.09835 for learned step sizes.
    """
    scales = step_sizes_of(parameters, step_size)

    def of_adapted(adapted: Parameters) -> Tensor:
        return loss({**parameters, **adapted}, batch)

    gradients = torch.func.grad(of_adapted)({name: parameters[name] for name in scales})
    if first_order:
        gradients = {name: gradient.detach() for name, gradient in gradients.items()}
    steps = {name: scaled(gradients[name], scale, parameters, name) for name, scale in scales.items()}
    return {**parameters, **{name: parameters[name] - step for name, step in steps.items()}}


def adapt(
    loss: TaskLoss[Batch],
    parameters: Parameters,
    batch: Batch,
    step_size: StepSize,
    *,
    first_order: bool = False,
    chunk_size: int | None = None,
) -> Parameters:
    """`gradient_step` for every task of a meta-batch.

    Args:
        loss: scalar loss of one task.
        parameters: task axis leading.
        batch: a tree of tensors, task axis leading.
        step_size: as in `gradient_step`, shared by the tasks.
        first_order: as in `gradient_step`.
        chunk_size: tasks per pass at most; None for all at once.

    Returns:
        The adapted parameters, task axis leading.
    """

    def one_task(task_parameters: Parameters, task_batch: Batch) -> Parameters:
        return gradient_step(loss, task_parameters, task_batch, step_size, first_order=first_order)

    return over_tasks(one_task, parameters, batch, chunk_size=chunk_size)


def adaptable_names(parameters: Mapping[str, Tensor]) -> list[str]:
    """All names but those of learned step sizes."""
    return [name for name in parameters if not name.startswith(LEARNED_STEP_SIZE)]


def step_sizes_of(parameters: Mapping[str, Tensor], step_size: StepSize) -> Mapping[str, float]:
    """The step size of every parameter that is adapted, by name."""
    return step_size if isinstance(step_size, Mapping) else dict.fromkeys(adaptable_names(parameters), step_size)


def scaled(value: Tensor, scale: float, parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """`value` times `scale`, the step size of parameter `name`, and times its learned step size if there is one."""
    learned = parameters.get(LEARNED_STEP_SIZE + name)
    return scale * value if learned is None else scale * learned * value
