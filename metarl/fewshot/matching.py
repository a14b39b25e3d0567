"""Matching networks: the probability of a class is the attention to its examples.

Oriol Vinyals, Charles Blundell, Timothy Lillicrap, Koray Kavukcuoglu, Daan Wierstra: Matching Networks for One Shot
Learning. NeurIPS 2016, arXiv:1606.04080. Attention is a softmax of the cosine between features, over all support
examples. With full-context embeddings, a bidirectional LSTM makes the support's features depend on each other. An LSTM
that reads the support by attention makes the query's features depend on the support.

Differs from the paper:
- The cosine has a factor, `scale`. Without it the softmax is nearly flat: with 5 classes and cosines from -1 to 1, no
  probability exceeds 0.65.
- The LSTM over the support gets it in a random order.
- The first read-out is zero. Equation 5 with a hidden state of zero would give the support's mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.bounds import AtLeast, Positive
from metarl.fewshot.base.learner import one_hot
from metarl.fewshot.base.metric import MetricConfig, MetricLearner, Remembered
from metarl.fewshot.base.networks import Network, Statistics
from metarl.gradients.adaptation import Parameters

LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class MatchingConfig(MetricConfig):
    """Settings of a matching network."""

    scale: Annotated[float, Positive] = 30.0
    """Factor on the cosine, the inverse of the softmax's temperature. Accuracy on Omniglot's validation classes (5-way
    1-shot, 1,000 episodes): 92.9 % with 10, 95.0 % with 30, 94.8 % with 100; with `learn_scale` from 10, 93.8 %."""
    learn_scale: bool = False
    """Meta-learn the factor too; it starts at `scale`."""
    full_context: bool = False
    """Full-context embeddings (FCE)."""
    processing_steps: Annotated[int, AtLeast(1)] = 5
    """Read-outs of the support for each query, with full-context embeddings."""


class Matching(MetricLearner[Remembered]):
    """Attention over the support. Its state holds the support's features and labels."""

    Config = MatchingConfig
    config: MatchingConfig

    def _add_networks(self, generator: torch.Generator) -> None:
        if self.config.learn_scale:
            self.networks.parameters["log_scale"] = torch.tensor(math.log(self.config.scale))
        if self.config.full_context:
            size = math.prod(self.feature_shape)
            self.context = self.networks.add(Network(SupportContext(size, generator=generator), name="context"))
            self.reading = self.networks.add(Network(AttentionLSTM(size, generator=generator), name="reading"))

    def remember(self, parameters: Parameters, features: Tensor, targets: Tensor, num_ways: int) -> Remembered:
        known = features.flatten(1)
        if self.config.full_context:
            known = self.context(parameters, known)
        return Remembered(known, one_hot(targets, num_ways))

    def compare(
        self, parameters: Parameters, memory: Remembered, features: Tensor, statistics: Statistics | None
    ) -> Tensor:
        asked = features.flatten(1)
        if self.config.full_context:
            steps = torch.zeros(self.config.processing_steps, 0, device=asked.device)
            asked = self.reading(parameters, asked, memory.features, steps)
        cosines = functional.normalize(asked, dim=-1) @ functional.normalize(memory.features, dim=-1).mT
        scale = parameters["log_scale"].exp() if self.config.learn_scale else self.config.scale
        probabilities = (scale * cosines).softmax(-1) @ memory.labels
        return probabilities.clamp_min(LEAST_PROBABILITY).log()


class LSTMCell(nn.Module):
    """One step of an LSTM (Hochreiter, Schmidhuber 1997) by plain products, since `vmap` cannot batch torch's own.

    Weights are Xavier-uniform. Biases are zero; those of the forget gate are one.
    """

    def __init__(self, input_size: int, size: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.gates = nn.Linear(input_size + size, 4 * size)
        for gate in self.gates.weight.detach().chunk(4):
            nn.init.xavier_uniform_(gate, generator=generator)
        nn.init.zeros_(self.gates.bias)
        self.gates.bias.detach()[size : 2 * size] = 1.0

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Next hidden and cell state [B, size] for inputs [B, input_size]."""
        write, forget, candidate, read = self.gates(torch.cat([inputs, hidden], dim=-1)).chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(write) * torch.tanh(candidate)
        return torch.sigmoid(read) * torch.tanh(cell), cell


class SupportContext(nn.Module):
    """g: a bidirectional LSTM over the support, with a skip connection. Equation in appendix A.2 of the paper."""

    def __init__(self, size: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.forwards = LSTMCell(size, size, generator=generator)
        self.backwards = LSTMCell(size, size, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """[E, D] -> [E, D]."""
        return features + _along(self.forwards, features) + _along(self.backwards, features.flip(0)).flip(0)


def _along(cell: LSTMCell, features: Tensor) -> Tensor:
    hidden = memory = torch.zeros_like(features[:1])
    outputs = []
    for row in features.unsqueeze(1):
        hidden, memory = cell(row, hidden, memory)
        outputs.append(hidden)
    return torch.cat(outputs)


class AttentionLSTM(nn.Module):
    """f: an LSTM that reads the support by attention at each of a few steps. Equations 3 to 6 of the paper."""

    def __init__(self, size: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.cell = LSTMCell(2 * size, size, generator=generator)

    def forward(self, features: Tensor, support: Tensor, steps: Tensor) -> Tensor:
        """[B, D] for query features [B, D], support features [E, D] and one empty row for each step."""
        hidden, cell = torch.zeros_like(features), torch.zeros_like(features)
        read = torch.zeros_like(features)
        for _ in steps:
            hidden, cell = self.cell(torch.cat([features, read], dim=-1), hidden, cell)
            hidden = hidden + features
            read = (hidden @ support.mT).softmax(-1) @ support
        return hidden
