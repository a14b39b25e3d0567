"""Relation networks: a learned comparison of feature maps.

Flood Sung, Yongxin Yang, Li Zhang, Tao Xiang, Philip Torr, Timothy Hospedales: Learning to Compare: Relation Network
for Few-Shot Learning. CVPR 2018, arXiv:1711.06025. A class is the sum of its examples' feature maps. A small
convolutional network scores each pair of class and query from 0 to 1.

Differs from the paper: all convolutions keep the size (padding 1); the authors' first two do not. Cross-entropy is
taken of the scores before the sigmoid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.bounds import AtLeast
from metarl.core.errors import require
from metarl.fewshot.base.encoders import BatchNormMode, Conv4
from metarl.fewshot.base.learner import one_hot
from metarl.fewshot.base.metric import MetricConfig, MetricLearner
from metarl.fewshot.base.networks import Network, Statistics
from metarl.gradients.adaptation import Parameters


@dataclass(frozen=True)
class RelationConfig(MetricConfig):
    """Settings of a relation network."""

    batch_norm: BatchNormMode = "transductive"
    loss: Literal["mse", "cross-entropy"] = "mse"
    """mse: squared error of the scores to 1 and 0, as in the paper. cross-entropy: softmax over the classes, the better
    one for many classes."""
    relation_size: Annotated[int, AtLeast(1)] = 8
    """Width of the relation module's hidden linear layer."""


class Relation(MetricLearner[Tensor]):
    """A learned comparison. Its state holds summed feature maps [N, W, C, H, X]."""

    Config = RelationConfig
    config: RelationConfig

    def _make_encoder(self, generator: torch.Generator) -> nn.Module:
        if self.config.encoder in ("auto", "conv4") and len(self.spaces.input_shape) == 3:
            norm = self.config.batch_norm != "none"
            shape, filters = self.spaces.input_shape, self.config.num_filters
            shrink: tuple[Literal["pool", "none"], ...] = ("pool", "pool", "none", "none")
            return Conv4(shape, filters, batch_norm=norm, shrink=shrink, flat=False, generator=generator)
        return super()._make_encoder(generator)

    def _add_networks(self, generator: torch.Generator) -> None:
        norm = self.config.batch_norm != "none"
        if len(self.feature_shape) == 3:
            sides = self.feature_shape[1:]
            allowed = f"another: feature maps of {sides} are too small; the relation module halves them twice"
            require(min(sides) >= 4, "agent.encoder", self.config.encoder, allowed)
            module: nn.Module = RelationModule(self.feature_shape, self.config, batch_norm=norm, generator=generator)
        else:
            module = FlatRelation(math.prod(self.feature_shape), self.config.relation_size, generator=generator)
        self.relation = self.networks.add(Network(module, name="relation"))

    def remember(self, parameters: Parameters, features: Tensor, targets: Tensor, num_ways: int) -> Tensor:
        members = one_hot(targets, num_ways)
        sums = members.mT @ features.flatten(1)
        return sums.reshape(num_ways, *features.shape[1:])

    def compare(
        self, parameters: Parameters, memory: Tensor, features: Tensor, statistics: Statistics | None
    ) -> Tensor:
        scores = self.relation(parameters, _pairs(memory, features), statistics=statistics)
        return scores.view(len(features), len(memory))

    def comparison_statistics(self, parameters: Parameters, memory: Tensor, features: Tensor) -> Statistics:
        smooth = self.config.batch_norm == "support"
        return self.relation.recorded(parameters, _pairs(memory, features), differentiable=smooth)[1]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.config.loss == "cross-entropy":
            return functional.cross_entropy(logits, targets)
        return (torch.sigmoid(logits) - one_hot(targets, logits.shape[-1])).square().mean()


def _pairs(memory: Tensor, features: Tensor) -> Tensor:
    """[E * W, 2 C, ...]: every query with every class, along the channels."""
    ways, queries = len(memory), len(features)
    known = memory.unsqueeze(0).expand(queries, *memory.shape)
    asked = features.unsqueeze(1).expand(queries, ways, *features.shape[1:])
    return torch.cat([known, asked], dim=2).flatten(0, 1)


class RelationModule(nn.Module):
    """Two blocks of convolution and pooling, a hidden layer, a score: [B, 2 C, H, X] -> [B, 1] before the sigmoid."""

    def __init__(
        self, feature_shape: tuple[int, ...], config: RelationConfig, *, batch_norm: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        filters = config.num_filters
        self.blocks = Conv4(
            (2 * feature_shape[0], *feature_shape[1:]),
            filters,
            batch_norm=batch_norm,
            shrink=("pool", "pool"),
            generator=generator,
        )
        size = filters * math.prod(side // 4 for side in feature_shape[1:])
        self.layers = FlatScore(size, config.relation_size, generator=generator)

    def forward(self, pairs: Tensor) -> Tensor:
        scores: Tensor = self.layers(self.blocks(pairs))
        return scores


class FlatScore(nn.Module):
    """A hidden layer and a score: [B, size] -> [B, 1]."""

    def __init__(self, size: int, hidden_size: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden, self.score = nn.Linear(size, hidden_size), nn.Linear(hidden_size, 1)
        for layer in (self.hidden, self.score):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.score(torch.relu(self.hidden(inputs)))
        return scores


class FlatRelation(FlatScore):
    """The relation of features with `size` numbers, as vectors or maps: [B, 2 C, ...] -> [B, 1]."""

    def __init__(self, size: int, hidden_size: int, *, generator: torch.Generator) -> None:
        super().__init__(2 * size, hidden_size, generator=generator)

    def forward(self, pairs: Tensor) -> Tensor:
        return super().forward(pairs.flatten(1))
