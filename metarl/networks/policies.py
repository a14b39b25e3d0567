"""Networks and action distributions, written for ONE task; learners lift them over the meta-batch.

Distributions are named tuples of tensors because `torch.func.vmap` accepts those.
"""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from metarl.core.errors import require
from metarl.core.learner import Spaces

Activation = Literal["tanh", "relu"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}
_LOG_2PI = math.log(2.0 * math.pi)


class Gaussian(NamedTuple):
    """Independent normal actions without bounds. Environments clip them; log-probabilities are of the unclipped action.

    Attributes:
        mean: [..., action_size].
        log_std: broadcastable to `mean`.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Actions from standard normal `noise` of `mean`'s shape."""
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """The likeliest actions, of `mean`'s shape."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """Summed over action dimensions, [...]."""
        scaled = (actions - self.mean) * (-self.log_std).exp()
        return (-0.5 * (scaled.square() + _LOG_2PI) - self.log_std).sum(-1)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other), [...]."""
        variance_ratio = (2.0 * (self.log_std - other.log_std)).exp()
        shift = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        return (0.5 * (variance_ratio + shift - 1.0) + other.log_std - self.log_std).sum(-1)

    def entropy(self) -> Tensor:
        """Summed over action dimensions, [...]."""
        return (self.log_std + 0.5 * (1.0 + _LOG_2PI)).expand_as(self.mean).sum(-1)

    def detach(self) -> Gaussian:
        return Gaussian(self.mean.detach(), self.log_std.detach())


class Categorical(NamedTuple):
    """One of `action_size` actions.

    Attributes:
        logits: [..., action_size], unnormalised log-probabilities.
    """

    logits: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [...] by inversion of the cumulative distribution at uniform `noise` in [0, 1)."""
        cumulative = self.logits.softmax(-1).cumsum(-1)
        return (cumulative[..., :-1] <= noise.unsqueeze(-1)).sum(-1)

    def mode(self) -> Tensor:
        """The likeliest actions, [...]."""
        return self.logits.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """[...]."""
        return self.logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def kl(self, other: Categorical) -> Tensor:
        """KL(self || other), [...]."""
        log_p, log_q = self.logits.log_softmax(-1), other.logits.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def entropy(self) -> Tensor:
        """[...]."""
        log_p = self.logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def detach(self) -> Categorical:
        return Categorical(self.logits.detach())


Distribution = Gaussian | Categorical


def action_std(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """The metric "std", the mean standard deviation of continuous actions; empty for a policy of discrete actions."""
    return {"std": float(parameters["log_std"].exp().mean())} if "log_std" in parameters else {}


class Linear(nn.Linear):
    """A linear layer that also takes parameters of several tasks: weights [N, out, in] map inputs [N, B, in]."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return super().forward(inputs)
        return torch.bmm(inputs, self.weight.mT) + self.bias.unsqueeze(1)


class MLP(nn.Module):
    """A multilayer perceptron with Xavier-uniform weights and zero biases.

    Args:
        sizes: input, hidden and output widths.
        activation: after every layer but the last.
        output_gain: factor on the last layer's initial weights.
        generator: draws the initial weights.
    """

    def __init__(
        self, sizes: Sequence[int], *, activation: Activation, output_gain: float = 1.0, generator: torch.Generator
    ) -> None:
        super().__init__()
        require(all(size >= 1 for size in sizes), "hidden_sizes", tuple(sizes[1:-1]), "positive integers")
        self.layers = nn.ModuleList(Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes))
        self.activation = _ACTIVATIONS[activation]
        for number, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, Linear)
            gain = output_gain if number == len(self.layers) else 1.0
            nn.init.xavier_uniform_(layer.weight, gain=gain, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for layer in self.layers[:-1]:
            hidden = self.activation(layer(hidden))
        output: Tensor = self.layers[-1](hidden)
        return output


class GaussianPolicy(nn.Module):
    """The mean is an MLP. The log standard deviation is learned and does not depend on the observation."""

    def __init__(
        self,
        spaces: Spaces,
        *,
        hidden_sizes: Sequence[int],
        activation: Activation,
        initial_std: float,
        min_std: float,
        generator: torch.Generator,
        output_gain: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = [spaces.observation_size, *hidden_sizes, spaces.action_size]
        self.mean = MLP(sizes, activation=activation, output_gain=output_gain, generator=generator)
        self.log_std = nn.Parameter(torch.full((spaces.action_size,), math.log(initial_std)))
        self.min_log_std = math.log(min_std)

    def forward(self, observations: Tensor) -> Gaussian:
        log_std = self.log_std.clamp_min(self.min_log_std)
        return Gaussian(self.mean(observations), log_std if log_std.dim() == 1 else log_std.unsqueeze(1))


class CategoricalPolicy(nn.Module):
    """The logits are an MLP."""

    def __init__(
        self,
        spaces: Spaces,
        *,
        hidden_sizes: Sequence[int],
        activation: Activation,
        generator: torch.Generator,
        output_gain: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = [spaces.observation_size, *hidden_sizes, spaces.action_size]
        self.logits = MLP(sizes, activation=activation, output_gain=output_gain, generator=generator)

    def forward(self, observations: Tensor) -> Categorical:
        return Categorical(self.logits(observations))


def make_policy(
    spaces: Spaces,
    *,
    hidden_sizes: Sequence[int],
    activation: Activation,
    initial_std: float,
    min_std: float,
    generator: torch.Generator,
    output_gain: float = 1.0,
) -> nn.Module:
    """The policy that fits the action space: Gaussian for vectors, categorical for discrete actions."""
    if spaces.discrete:
        return CategoricalPolicy(
            spaces, hidden_sizes=hidden_sizes, activation=activation, generator=generator, output_gain=output_gain
        )
    return GaussianPolicy(
        spaces,
        hidden_sizes=hidden_sizes,
        activation=activation,
        initial_std=initial_std,
        min_std=min_std,
        generator=generator,
        output_gain=output_gain,
    )


class Stateless:
    """A module as a function of its parameters, for ONE task: `Stateless(module)(parameters, *inputs)`.

    `functional_call` replaces the module's parameters while it runs, so every thread has its own copy of the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._local = threading.local()

    def __call__(self, parameters: Mapping[str, Tensor], *inputs: Tensor) -> Any:
        if not hasattr(self._local, "module"):
            self._local.module = copy.deepcopy(self._module)
        return torch.func.functional_call(self._local.module, dict(parameters), inputs, tie_weights=False)
