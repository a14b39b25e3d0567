"""Normalises observations by their running mean and standard deviation.

Brian Welford: Note on a Method for Calculating Corrected Sums of Squares and Products. Technometrics 4(3), 1962. Parts
are merged as in Tony Chan, Gene Golub, Randall LeVeque: Algorithms for Computing the Sample Variance. The American
Statistician 37(3), 1983.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metarl.core.learner import StateDict, loaded

CLIP = 10.0
EPSILON = 1e-8
STATE = "observations"  # key of the moments in a learner's `state_dict`


class Moments(NamedTuple):
    """Moments of observations, float64.

    Attributes:
        total: [], number of observations.
        mean: [observation_size].
        squares: [observation_size], sum of squared distances from the mean.
    """

    total: Tensor
    mean: Tensor
    squares: Tensor


class Normalizer:
    """Normalises observations by the moments of all observations so far. Before the first `update`, nothing changes.

    (observation - mean) / sqrt(variance + 1e-8), clipped to [-10, 10]. The moments stay on the CPU.

    Args:
        observation_size: numbers per observation.

    Attributes:
        moments: of all observations so far.
    """

    def __init__(self, observation_size: int) -> None:
        nothing = torch.zeros(observation_size, dtype=torch.float64)
        self.moments = Moments(torch.zeros((), dtype=torch.float64), nothing, nothing.clone())

    def __call__(self, inputs: Tensor) -> Tensor:
        """Normalises the observation at the start of inputs [..., observation_size or more]. The rest stays."""
        if self.moments.total == 0.0:
            return inputs
        mean, scale = (part.to(inputs.device, inputs.dtype) for part in self._affine())
        return _normalized(inputs, mean, scale)

    def update(self, observations: Tensor, mask: Tensor) -> None:
        """Adds the live steps, task after task, so that the bits do not depend on the number of tasks at once.

        Args:
            observations: [N, ..., observation_size].
            mask: [N, ...], 1 for live steps.
        """
        for seen, live in zip(observations.detach(), mask, strict=True):
            self.moments = _merged(self.moments, _moments(seen[live > 0]))

    def wrapped(self, policy: nn.Module) -> nn.Module:
        """`policy` with the current normalisation of its observations."""
        return policy if self.moments.total == 0.0 else NormalizedPolicy(policy, *self._affine())

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return self.moments._asdict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises `ValueError` if `state` belongs to observations of another size."""
        self.moments = Moments(**loaded(self.moments._asdict(), state, what="moments of the observations"))

    def _affine(self) -> tuple[Tensor, Tensor]:
        """The mean to subtract, and the factor to multiply by."""
        total, mean, squares = self.moments
        return mean, (squares / total + EPSILON).rsqrt()


def state_of(normalizer: Normalizer | None) -> StateDict:
    """The normaliser's part of a learner's `state_dict`."""
    return {} if normalizer is None else {STATE: normalizer.state_dict()}


def load_state_of(normalizer: Normalizer | None, state: Mapping[str, Any]) -> None:
    """Loads the normaliser's part of a learner's whole `state`.

    Raises:
        ValueError: only one of learner and state has a normaliser, or their observation sizes differ.
    """
    if (normalizer is None) == (STATE in state):
        has = "false" if normalizer is None else "true"
        raise ValueError(f"agent.normalize_observations: {has} for the learner, but not for the saved state")
    if normalizer is not None:
        normalizer.load_state_dict(state[STATE])


class NormalizedPolicy(nn.Module):
    """A policy with normalised observations. Further inputs, such as a context, are not normalised."""

    mean: Tensor
    scale: Tensor

    def __init__(self, policy: nn.Module, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.policy = policy
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", scale.float())

    def forward(self, inputs: Tensor) -> Any:
        return self.policy(_normalized(inputs, self.mean, self.scale))


def _normalized(inputs: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    size = len(mean)
    seen = ((inputs[..., :size] - mean) * scale).clamp(-CLIP, CLIP)
    return seen if inputs.shape[-1] == size else torch.cat([seen, inputs[..., size:]], dim=-1)


def _moments(observations: Tensor) -> Moments:
    """Of observations [n, observation_size], on the CPU."""
    values = observations.double()
    mean = values.sum(0) / max(1, len(values))
    squares = (values - mean).square().sum(0)
    return Moments(torch.tensor(float(len(values)), dtype=torch.float64), mean.cpu(), squares.cpu())


def _merged(one: Moments, other: Moments) -> Moments:
    if other.total == 0.0:
        return one
    total = one.total + other.total
    apart = other.mean - one.mean
    mean = one.mean + apart * (other.total / total)
    return Moments(total, mean, one.squares + other.squares + apart.square() * (one.total * other.total / total))
