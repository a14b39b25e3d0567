"""Zero-shot prototypical networks: a class's prototype is made from a description of the class.

Jake Snell, Kevin Swersky, Richard Zemel: Prototypical Networks for Few-shot Learning. NeurIPS 2017, arXiv:1703.05175,
section 2.7. The support holds one vector of attributes for every class. The prototype is a linear map of this vector,
normalised to length one, since attributes come from another domain than features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.errors import require
from metarl.fewshot.base.metric import MetricConfig, MetricLearner
from metarl.fewshot.base.networks import Network, Statistics
from metarl.fewshot.proto import class_means, squared_distances
from metarl.gradients.adaptation import Parameters


@dataclass(frozen=True)
class ZeroShotConfig(MetricConfig):
    """Settings of a zero-shot prototypical network."""

    batch_norm: Literal["transductive", "running", "none"] = "running"
    """Statistics that normalise the query. transductive: the query's own, which raises accuracy. running: averages over
    meta-training (training itself uses the batch's). none: layer normalisation of each example instead."""


class ZeroShotProto(MetricLearner[Tensor]):
    """The class with the nearest prototype. Its state holds prototypes [N, W, D]. The support must be descriptions."""

    Config = ZeroShotConfig
    config: ZeroShotConfig
    # One step, since there is one description of each class.
    traits = replace(
        MetricLearner.traits,
        defaults={"trainer": {"meta_batch_size": 2}, "evaluation": {"num_adaptation_steps": 1}},
    )
    reads_descriptions = True

    def _require_fit(self) -> None:
        super()._require_fit()
        allowed = "a learner for tasks whose support is examples: this one needs descriptions of the classes"
        require(self.spaces.description_size > 0, "agent", "proto-zero-shot", allowed)

    def _add_networks(self, generator: torch.Generator) -> None:
        layer = nn.Linear(self.spaces.description_size, math.prod(self.feature_shape))
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        self.description = self.networks.add(Network(layer, name="description"))

    def encode_support(self, parameters: Parameters, inputs: Tensor, statistics: Statistics | None) -> Tensor:
        return functional.normalize(self.description(parameters, inputs), dim=-1)

    def remember(self, parameters: Parameters, features: Tensor, targets: Tensor, num_ways: int) -> Tensor:
        return class_means(features, targets, num_ways)

    def compare(
        self, parameters: Parameters, memory: Tensor, features: Tensor, statistics: Statistics | None
    ) -> Tensor:
        return -squared_distances(features.flatten(1), memory)

    def _encode_both(
        self, parameters: Parameters, support: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor, Statistics | None, Statistics]:
        features, seen = self.encoder.recorded(parameters, query)
        return self.encode_support(parameters, support, None), features, None, seen
