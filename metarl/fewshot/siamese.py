"""Siamese networks: learn whether two examples are of one class, then compare the query with every support example.

Gregory Koch, Richard Zemel, Ruslan Salakhutdinov: Siamese Neural Networks for One-shot Image Recognition. ICML Deep
Learning Workshop 2015. The probability of "same" is a logistic function of a learned, weighted L1 distance of features.

Differs from the paper:
- The loss is over all pairs of an episode. Same-class pairs have half of the total weight. The paper draws pairs,
  half of them from the same class.
- The encoder is that of the other learners, not the paper's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.fewshot.base.learner import ExampleBatch, Outcome, joined, one_hot, score_of
from metarl.fewshot.base.metric import MetricConfig, MetricLearner, Remembered
from metarl.fewshot.base.networks import Network, Statistics
from metarl.gradients.adaptation import Parameters


@dataclass(frozen=True)
class SiameseConfig(MetricConfig):
    """Settings of a Siamese network."""


class Siamese(MetricLearner[Remembered]):
    """The log-odds of "same class" for pairs. A class's score is their mean over its examples."""

    Config = SiameseConfig
    config: SiameseConfig

    def _add_networks(self, generator: torch.Generator) -> None:
        size = math.prod(self.feature_shape)
        layer = nn.Linear(size, 1)
        # Negative weights: the further apart, the less likely the same class.
        nn.init.constant_(layer.weight, -1.0 / size)
        nn.init.zeros_(layer.bias)
        self.verdict = self.networks.add(Network(layer, name="verdict"))

    def same(self, parameters: Parameters, left: Tensor, right: Tensor) -> Tensor:
        """[A, B]: log-odds that rows of [A, D] and [B, D] are of one class."""
        distances = (left.unsqueeze(1) - right.unsqueeze(0)).abs()
        return self.verdict(parameters, distances).squeeze(-1)

    def remember(self, parameters: Parameters, features: Tensor, targets: Tensor, num_ways: int) -> Remembered:
        return Remembered(features.flatten(1), one_hot(targets, num_ways))

    def compare(
        self, parameters: Parameters, memory: Remembered, features: Tensor, statistics: Statistics | None
    ) -> Tensor:
        odds = self.same(parameters, features.flatten(1), memory.features)
        return odds @ memory.labels / memory.labels.sum(0).clamp_min(1.0)

    def episode_loss(
        self, parameters: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Tensor, Outcome]:
        known = joined(support)
        known_features, features, _, seen = self._encode_both(parameters, known.inputs, query.inputs)
        every = torch.cat([known_features, features]).flatten(1)
        targets = torch.cat([known.targets, query.targets])
        loss = pair_loss(self.same(parameters, every, every), targets)
        memory = self.remember(parameters, known_features, known.targets, self.spaces.train_ways)
        score = score_of(self.compare(parameters, memory, features, None), query.targets)
        return loss, Outcome(loss, score, seen)


def pair_loss(odds: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of log-odds of "same class" [E, E], over all pairs of two different examples.

    Same-class pairs have half of the total weight.
    """
    same = (targets.unsqueeze(0) == targets.unsqueeze(1)).to(odds.dtype)
    apart = 1.0 - same
    same = same * (1.0 - torch.eye(len(targets), dtype=odds.dtype, device=odds.device))
    losses = (functional.softplus(-odds) * same).sum() / same.sum().clamp_min(1.0)
    return 0.5 * (losses + (functional.softplus(odds) * apart).sum() / apart.sum().clamp_min(1.0))
