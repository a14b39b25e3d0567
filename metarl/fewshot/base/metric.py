"""Learners that adapt by remembering the support: what prototypes, matching, relation and Siamese networks share.

Their unit is the shot: the adaptation curve says how accurate they are after one, two, ... examples of every class.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarl.core.errors import require
from metarl.core.learner import Traits
from metarl.fewshot.base.encoders import BatchNormMode
from metarl.fewshot.base.episodic import EpisodicConfig, EpisodicLearner
from metarl.fewshot.base.learner import ExampleBatch, Outcome, joined, loss_of, score_of
from metarl.fewshot.base.networks import Statistics, expanded
from metarl.gradients.adaptation import Parameters


@dataclass(frozen=True)
class MetricConfig(EpisodicConfig):
    """Settings of a metric learner."""

    batch_norm: BatchNormMode = "running"


class Known(NamedTuple):
    """The adapted state, task axis leading.

    Attributes:
        parameters: of the networks.
        support: every example so far.
        memory: what the learner makes of them.
        statistics: of the support, where the query is normalised by them; else empty.
    """

    parameters: Parameters
    support: ExampleBatch
    memory: Any
    statistics: Statistics


class Remembered(NamedTuple):
    """What is kept of ONE task by learners that compare with every example of it.

    Attributes:
        features: [E, D].
        labels: [E, W], ones and zeros.
    """

    features: Tensor
    labels: Tensor


class MetricLearner(EpisodicLearner[Known]):
    """A learner but for what it remembers of features, and how it compares others with it."""

    traits = Traits(
        unit="shots",
        support="shot",
        adapts_in_update=True,
        defaults={"trainer": {"meta_batch_size": 2}, "evaluation": {"num_adaptation_steps": 5}},
    )
    config: MetricConfig

    def _require_fit(self) -> None:
        super()._require_fit()
        allowed = "a learner for values: this one needs classes"
        require(self.spaces.discrete, "agent", type(self).__name__, allowed)

    @abstractmethod
    def remember(self, parameters: Parameters, features: Tensor, targets: Tensor, num_ways: int) -> Any:
        """What is kept of ONE task's support features [E, D] with labels [E]: a tree of tensors."""

    @abstractmethod
    def compare(self, parameters: Parameters, memory: Any, features: Tensor, statistics: Statistics | None) -> Tensor:
        """[E, W]: log-probabilities, up to a constant for each example, of the classes for query features [E, D]."""

    def comparison_statistics(self, parameters: Parameters, memory: Any, features: Tensor) -> Statistics:
        """Of the batch norms that `compare` has, for support or training features; most have none."""
        return {}

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of ONE task's query."""
        return loss_of(logits, targets)

    def episode_loss(
        self, parameters: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Tensor, Outcome]:
        known = joined(support)
        known_features, features, given, seen = self._encode_both(parameters, known.inputs, query.inputs)
        memory = self.remember(parameters, known_features, known.targets, self.spaces.train_ways)
        if self.config.batch_norm == "support":
            given = {**(given or {}), **self.comparison_statistics(parameters, memory, known_features)}
        elif self.config.batch_norm == "running":
            seen = {**seen, **self.comparison_statistics(parameters, memory, features)}
        logits = self.compare(parameters, memory, features, given or None)
        loss = self.loss(logits, query.targets)
        return loss, Outcome(loss, score_of(logits, query.targets), seen)

    def encode_support(self, parameters: Parameters, inputs: Tensor, statistics: Statistics | None) -> Tensor:
        """Features of ONE task's support at test time."""
        return self.encoder(parameters, inputs, statistics=statistics)

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Known:
        source = self.parameters if parameters is None else parameters
        shape = (self.spaces.description_size,) if self.spaces.description_size else self.spaces.input_shape
        nothing = torch.zeros(num_tasks, 0, *shape, device=self.device)
        none = torch.zeros(num_tasks, 0, dtype=torch.int64, device=self.device)
        return Known(expanded(source, num_tasks), ExampleBatch(nothing, none, none), (), {})

    def adapt(self, state: Known, support: ExampleBatch, *, step: int, differentiable: bool = False) -> Known:
        def one_task(parameters: Parameters, batch: ExampleBatch) -> tuple[Any, Statistics]:
            used: Statistics = {}
            if self.config.batch_norm == "support":
                features, used = self.encoder.recorded(parameters, batch.inputs, differentiable=True)
            else:
                features = self.encode_support(parameters, batch.inputs, self._test_statistics())
            memory = self.remember(parameters, features, batch.targets, self.spaces.num_outputs)
            if self.config.batch_norm == "support":
                used = {**used, **self.comparison_statistics(parameters, memory, features)}
            return memory, used

        before = state.support
        parts = (torch.cat(pair, dim=1) for pair in zip(before, support, strict=True))
        known = ExampleBatch(*parts)
        with torch.set_grad_enabled(differentiable):
            memory, statistics = self.execution.over_tasks(one_task, state.parameters, known)
        return Known(state.parameters, known, memory, statistics)

    def predict(self, state: Known, inputs: Tensor) -> Tensor:
        if state.support.targets.shape[1] == 0:  # before any support, all classes are equally likely
            return torch.zeros(*inputs.shape[:2], self.spaces.num_outputs, device=inputs.device)

        def one_task(parameters: Parameters, memory: Any, statistics: Statistics, inputs: Tensor) -> Tensor:
            given = self._test_statistics() or statistics or None
            features = self.encoder(parameters, inputs, statistics=given)
            return self.compare(parameters, memory, features, given)

        return self.execution.over_tasks(one_task, state.parameters, state.memory, state.statistics, inputs)

    def _encode_both(
        self, parameters: Parameters, support: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor, Statistics | None, Statistics]:
        """In training: both features, the statistics that normalise the query, and those to keep averages of."""
        mode = self.config.batch_norm
        if mode in ("running", "none"):
            both, seen = self.encoder.recorded(parameters, torch.cat([support, query]))
            return both[: len(support)], both[len(support) :], None, seen
        if mode == "transductive":
            return self.encoder(parameters, support), self.encoder(parameters, query), None, {}
        features, used = self.encoder.recorded(parameters, support, differentiable=True)
        return features, self.encoder(parameters, query, statistics=used), used, {}
