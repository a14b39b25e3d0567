"""Prototypical networks: a class is the mean of its examples' features.

Jake Snell, Kevin Swersky, Richard Zemel: Prototypical Networks for Few-shot Learning. NeurIPS 2017, arXiv:1703.05175.
Probabilities are a softmax over negative squared Euclidean distances to the prototypes.

Differs from the paper: an update averages the episodes of a meta-batch, two by default. The paper updates after each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor
from torch.nn import functional

from metarl.core.bounds import Positive
from metarl.fewshot.base.learner import one_hot
from metarl.fewshot.base.metric import MetricConfig, MetricLearner
from metarl.fewshot.base.networks import Statistics
from metarl.gradients.adaptation import Parameters


@dataclass(frozen=True)
class ProtoConfig(MetricConfig):
    """Settings of a prototypical network."""

    distance: Literal["euclidean", "cosine"] = "euclidean"
    """euclidean: squared Euclidean, the better one in the paper. cosine: `cosine_scale` times the cosine."""
    cosine_scale: Annotated[float, Positive] = 10.0
    """Factor on the cosine. Without it the softmax would be nearly flat, since a cosine lies between -1 and 1."""


class Proto(MetricLearner[Tensor]):
    """The class with the nearest mean of features. Its state holds prototypes [N, W, D]."""

    Config = ProtoConfig
    config: ProtoConfig

    def remember(self, parameters: Parameters, features: Tensor, targets: Tensor, num_ways: int) -> Tensor:
        return class_means(features.flatten(1), targets, num_ways)

    def compare(
        self, parameters: Parameters, memory: Tensor, features: Tensor, statistics: Statistics | None
    ) -> Tensor:
        if self.config.distance == "cosine":
            normal = functional.normalize(features.flatten(1), dim=-1)
            return self.config.cosine_scale * (normal @ functional.normalize(memory, dim=-1).mT)
        return -squared_distances(features.flatten(1), memory)


def class_means(features: Tensor, targets: Tensor, num_ways: int) -> Tensor:
    """[W, D]: the mean of features [E, D] for each label from 0 to W - 1; zero for a label without examples."""
    members = one_hot(targets, num_ways).to(features.dtype)
    return (members.mT @ features) / members.sum(0).clamp_min(1.0).unsqueeze(-1)


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """[A, B]: squared Euclidean distances between the rows of [A, D] and [B, D]."""
    return left.square().sum(-1, keepdim=True) + right.square().sum(-1) - 2.0 * (left @ right.mT)
