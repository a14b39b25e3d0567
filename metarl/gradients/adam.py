"""Adam as a function of values: every task of a meta-batch may carry moments of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from metarl.gradients.adaptation import Parameters


class Moments(NamedTuple):
    """Adam's state.

    Attributes:
        num_steps: taken so far, int64 scalar.
        first: running means of the gradients; empty for Adam without momentum, whose beta1 is 0.
        second: running means of the squared gradients.
    """

    num_steps: Tensor
    first: Parameters
    second: Parameters


def no_moments(parameters: Mapping[str, Tensor], *, momentum: bool = True) -> Moments:
    """The state before the first step."""
    num_steps = torch.zeros((), dtype=torch.int64, device=next(iter(parameters.values())).device)
    first, second = ({name: torch.zeros_like(value) for name, value in parameters.items()} for _ in range(2))
    return Moments(num_steps, first if momentum else {}, second)


def adam_step(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    moments: Moments,
    lr: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> tuple[Parameters, Moments]:
    """The parameters one step down `gradients`, and the new moments; `beta1` is not used without momentum.

    Reference: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    num_steps = moments.num_steps + 1
    first = {name: beta1 * mean + (1.0 - beta1) * gradients[name] for name, mean in moments.first.items()}
    second = {name: beta2 * mean + (1.0 - beta2) * gradients[name].square() for name, mean in moments.second.items()}
    weight1, weight2 = (1.0 - beta ** num_steps.double() for beta in (beta1 if first else 0.0, beta2))
    stepped = {}
    for name, value in parameters.items():
        mean = (first or gradients)[name] / weight1
        stepped[name] = value - lr * mean / ((second[name] / weight2).sqrt() + epsilon)
    return stepped, Moments(num_steps, first, second)


def packed(moments: Moments) -> Parameters:
    """The moments of Adam without momentum as tensors that can stand beside the parameters: `num_steps`,
    `second.<name>`."""
    return {"num_steps": moments.num_steps, **{f"second.{name}": value for name, value in moments.second.items()}}


def packed_mean(state: Mapping[str, Tensor], names: Iterable[str]) -> Parameters:
    """The packed moments of `names` that `state` holds for every task, as their mean over the tasks, which have taken
    equally many steps."""
    second = {name: state[f"second.{name}"].mean(0) for name in names}
    return packed(Moments(state["num_steps"][0].clone(), {}, second))


def packed_step(state: Mapping[str, Tensor], gradients: Mapping[str, Tensor], lr: float) -> Parameters:
    """`state`, which holds parameters and beside them their packed moments, one step down `gradients`."""
    parameters = {name: state[name] for name in gradients}
    moments = Moments(state["num_steps"], {}, {name: state[f"second.{name}"] for name in gradients})
    parameters, moments = adam_step(parameters, gradients, moments, lr)
    return {**state, **parameters, **packed(moments)}
