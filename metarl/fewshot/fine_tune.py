"""Fine-tuning, the transfer baseline: train one network on all training classes, then tune it on the support.

Wei-Yu Chen, Yen-Cheng Liu, Zsolt Kira, Yu-Chiang Wang, Jia-Bin Huang: A Closer Look at Few-shot Classification. ICLR
2019, arXiv:1904.04232. For classification, the encoder is trained with one output per training class. At test time it
stays as it is, and a new linear layer, from zero, takes gradient steps on the support. `head = "cosine"` is the paper's
Baseline++.

For regression, the network is trained on the points of all tasks together. All of it takes gradient steps at test time:
the "pretrained" baseline of Finn et al. 2017, arXiv:1703.03400.

Differs from the paper: plain gradient descent at test time. Training batches are episodes, support and query together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.bounds import Positive
from metarl.core.errors import require
from metarl.fewshot.base.encoders import BatchNormMode
from metarl.fewshot.base.episodic import EpisodicConfig, TaskLossLearner
from metarl.fewshot.base.gradient import Adapted, SteppingLearner
from metarl.fewshot.base.learner import ExampleBatch, Outcome, joined, loss_of, score_of
from metarl.fewshot.base.networks import Network, Statistics
from metarl.gradients.adaptation import Parameters, StepSize


@dataclass(frozen=True)
class FineTuneConfig(EpisodicConfig):
    """Settings of fine-tuning."""

    inner_lr: Annotated[float, Positive] = 0.5
    """Step size at test time."""
    batch_norm: BatchNormMode = "running"
    head: Literal["linear", "cosine"] = "linear"
    """The last layer of a classifier: linear, or `cosine_scale` times the cosine of weights and features."""
    cosine_scale: Annotated[float, Positive] = 10.0
    """Factor on the cosine."""
    tuned: Literal["auto", "head", "all"] = "auto"
    """Layers that take gradient steps at test time. auto: the last layer for classification, all for regression."""


class FineTune(SteppingLearner, TaskLossLearner[Adapted]):
    """Joint training, then gradient steps on the support.

    The parameters `classes` hold a row per training class. The parameters `head` are those of the new
    layer; meta-training does not change them.
    """

    Config = FineTuneConfig
    config: FineTuneConfig
    traits = replace(
        SteppingLearner.traits,
        trains_jointly=True,
        defaults={"trainer": {"meta_batch_size": 4}, "evaluation": {"num_adaptation_steps": 10}},
    )

    def _require_fit(self) -> None:
        super()._require_fit()
        fits = self.config.head == "linear" or self.spaces.discrete
        require(fits, "agent.head", self.config.head, "'linear' for regression")

    def _add_networks(self, generator: torch.Generator) -> None:
        super()._add_networks(generator)
        self._rows = torch.zeros(0, dtype=torch.int64)
        if not self.spaces.discrete:
            return
        for name in self.head.parameters:
            self.networks.parameters[name] = torch.zeros_like(self.parameters[name])
        if self.config.head == "cosine":
            # A cosine has no gradient at weights of zero, so these start at random.
            weight = self.parameters["head.weight"]
            self.networks.parameters["head.weight"] = nn.init.xavier_uniform_(weight.clone(), generator=generator)
        classes = nn.Linear(math.prod(self.feature_shape), len(self.spaces.train_classes))
        nn.init.xavier_uniform_(classes.weight, generator=generator)
        nn.init.zeros_(classes.bias)
        self.classes = self.networks.add(Network(classes, name="classes"))
        self._rows = torch.full((max(self.spaces.train_classes) + 1,), -1)
        self._rows[torch.tensor(self.spaces.train_classes)] = torch.arange(len(self.spaces.train_classes))

    def outputs(self, parameters: Parameters, inputs: Tensor, statistics: Statistics | None = None) -> Tensor:
        features = self.encoder(parameters, inputs, statistics=statistics).flatten(1)
        return self._last_layer(self.head, parameters, features)

    def episode_loss(
        self, parameters: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Tensor, Outcome]:
        """The loss of joint training: all examples of the episode are one batch, labelled by training class."""
        batch = joined([support[-1], query])
        features, seen = self.encoder.recorded(parameters, batch.inputs)
        features = features.flatten(1)
        if self.spaces.discrete:
            logits = self._last_layer(self.classes, parameters, features)
            loss, score = self.class_loss(logits, self._rows.to(batch.classes.device)[batch.classes])
        else:
            outputs = self.head(parameters, features)
            loss, score = loss_of(outputs, batch.targets), score_of(outputs, batch.targets)
        return loss, Outcome(loss, score.detach(), seen if self.config.batch_norm == "running" else {})

    def class_loss(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy on training classes, for logits [E, num_train_classes] and each example's column [E]."""
        return functional.cross_entropy(logits, rows), score_of(logits, rows)

    def step_size(self, step: int) -> StepSize:
        tuned = self.config.tuned
        if tuned == "auto":
            tuned = "head" if self.spaces.discrete else "all"
        names = self.head.parameters if tuned == "head" else {**self.encoder.parameters, **self.head.parameters}
        return dict.fromkeys(names, self.config.inner_lr)

    def _last_layer(self, layer: Network, parameters: Parameters, features: Tensor) -> Tensor:
        if self.config.head == "linear":
            return layer(parameters, features)
        name = next(name for name in layer.parameters if name.endswith("weight"))
        weight = functional.normalize(parameters[name], dim=-1)
        return self.config.cosine_scale * (functional.normalize(features, dim=-1) @ weight.mT)
