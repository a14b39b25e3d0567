"""Named parameters as one flat vector, the form in which conjugate gradients and line searches take them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metarl.gradients.adaptation import Parameters


def flatten(parameters: Mapping[str, Tensor]) -> Tensor:
    """All parameters in one vector, in their order."""
    return torch.cat([value.reshape(-1) for value in parameters.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Parameters:
    """The inverse of `flatten`, for parameters with the names, order and shapes of `like`."""
    parts = torch.split(vector, [value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
