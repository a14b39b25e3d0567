"""Adam as a function of values, so that every task of a meta-batch can have its own moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarl.gradients.adaptation import Parameters


class Moments(NamedTuple):
    """Adam's state.

    Attributes:
        num_steps: number of steps so far, int64 scalar.
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
    """The parameters after one descent step on `gradients`, and the new moments; `beta1` is not used without momentum.

    Reference: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    num_steps = moments.num_steps + 1
    first = {name: beta1 * mean + (1.0 - beta1) * gradients[name] for name, mean in moments.first.items()}
    second = {name: beta2 * mean + (1.0 - beta2) * gradients[name].square() for name, mean in moments.second.items()}
    weight1, weight2 = (1.0 - beta ** num_steps.double() for beta in (beta1 if first else 0.0, beta2))
    stepped = {}
    for name, value in parameters.items():
        # Without the cast, a scalar parameter would become float64 like the weights.
        mean = (first or gradients)[name] / weight1.to(value.dtype)
        stepped[name] = value - lr * mean / ((second[name] / weight2.to(value.dtype)).sqrt() + epsilon)
    return stepped, Moments(num_steps, first, second)


def packed(moments: Moments) -> Parameters:
    """The moments of Adam without momentum in a dict like the parameters': `num_steps`, `second.<name>`."""
    return {"num_steps": moments.num_steps, **{f"second.{name}": value for name, value in moments.second.items()}}


def packed_mean(state: Mapping[str, Tensor], names: Iterable[str]) -> Parameters:
    """The mean over the tasks of the packed moments of `names` in `state`. All tasks have taken equally many steps."""
    second = {name: state[f"second.{name}"].mean(0) for name in names}
    return packed(Moments(state["num_steps"][0].clone(), {}, second))


def packed_step(state: Mapping[str, Tensor], gradients: Mapping[str, Tensor], lr: float) -> Parameters:
    """One descent step on `gradients`. `state` and the result hold the parameters and their packed moments."""
    parameters = {name: state[name] for name in gradients}
    moments = Moments(state["num_steps"], {}, {name: state[f"second.{name}"] for name in gradients})
    parameters, moments = adam_step(parameters, gradients, moments, lr)
    return {**state, **parameters, **packed(moments)}


def require_moments(moments: Mapping[int, Mapping[str, Any]], parameters: Sequence[Tensor]) -> None:
    """Refuses saved moments of torch's Adam, by parameter number, that do not fit `parameters`.

    Raises:
        ValueError: another shape or dtype.
    """
    for number, kept in moments.items():
        like = (parameters[number].shape, parameters[number].dtype)
        float(kept["step"])
        odd = [name for name in ("exp_avg", "exp_avg_sq") if (kept[name].shape, kept[name].dtype) != like]
        if odd:
            raise ValueError(f"moments do not fit the network: {odd[0]} of parameter {number}: another shape or dtype")
