"""Learners that compare the query with the support: prototypical, matching, relation and Siamese networks.

The x axis of their adaptation curve is examples per class (shots).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from metarl.core.errors import require
from metarl.core.learner import Traits
from metarl.fewshot.base.encoders import BatchNormMode
from metarl.fewshot.base.episodic import EpisodicConfig, TaskLossLearner
from metarl.fewshot.base.learner import ExampleBatch, Outcome, joined, loss_of, score_of
from metarl.fewshot.base.networks import Statistics, expanded
from metarl.gradients.adaptation import Parameters

Memory = TypeVar("Memory")


@dataclass(frozen=True)
class MetricConfig(EpisodicConfig):
    """Settings of a metric learner."""

    batch_norm: BatchNormMode = "running"


class Known(NamedTuple, Generic[Memory]):
    """The adapted state, task axis leading.

    Attributes:
        parameters: of the networks.
        support: every example so far.
        memory: what `remember` returns for them; empty before any support.
        statistics: of the support, if they normalise the query; else empty.
    """

    parameters: Parameters
    support: ExampleBatch
    memory: Memory | tuple[()]
    statistics: Statistics


class Remembered(NamedTuple):
    """Memory of ONE task, for learners that compare the query with every support example.

    Attributes:
        features: [E, D].
        labels: [E, W], ones and zeros.
    """

    features: Tensor
    labels: Tensor


class MetricLearner(TaskLossLearner[Known[Memory]]):
    """A learner that compares features. Subclasses define `remember` and `compare`, both for ONE task."""

    traits = Traits(
        unit="shots",
        support="shot",
        adapts_in_update=True,
        defaults={"trainer": {"meta_batch_size": 2}, "evaluation": {"num_adaptation_steps": 5}},
    )
    config: MetricConfig

    def _require_fit(self) -> None:
        super()._require_fit()
        allowed = "a learner for regression: this one needs classes"
        require(self.spaces.discrete, "agent", type(self).__name__, allowed)

    @abstractmethod
    def remember(self, parameters: Parameters, features: Tensor, targets: Tensor, num_ways: int) -> Memory:
        """The memory of support features [E, D] with labels [E]: a tree of tensors."""

    @abstractmethod
    def compare(
        self, parameters: Parameters, memory: Memory, features: Tensor, statistics: Statistics | None
    ) -> Tensor:
        """Log-probabilities [E, W] of the classes for query features [E, D], up to a constant for each example."""

    def comparison_statistics(self, parameters: Parameters, memory: Memory, features: Tensor) -> Statistics:
        """Statistics of the batch norms in `compare`, for support or training features; empty if it has none."""
        return {}

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ONE task's query."""
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

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Known[Memory]:
        source = self.parameters if parameters is None else parameters
        shape = (self.spaces.description_size,) if self.spaces.description_size else self.spaces.input_shape
        nothing = torch.zeros(num_tasks, 0, *shape, device=self.device)
        none = torch.zeros(num_tasks, 0, dtype=torch.int64, device=self.device)
        return Known(expanded(source, num_tasks), ExampleBatch(nothing, none, none), (), {})

    def adapt(
        self, state: Known[Memory], support: ExampleBatch, *, step: int, differentiable: bool = False
    ) -> Known[Memory]:
        def one_task(parameters: Parameters, batch: ExampleBatch) -> tuple[Memory, Statistics]:
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

    def predict(self, state: Known[Memory], inputs: Tensor) -> Tensor:
        if state.support.targets.shape[1] == 0:  # before any support, all classes are equally likely
            return torch.zeros(*inputs.shape[:2], self.spaces.num_outputs, device=inputs.device)

        def one_task(parameters: Parameters, memory: Memory, statistics: Statistics, inputs: Tensor) -> Tensor:
            given = self._test_statistics() or statistics or None
            features = self.encoder(parameters, inputs, statistics=given)
            return self.compare(parameters, memory, features, given)

        return self.execution.over_tasks(one_task, state.parameters, state.memory, state.statistics, inputs)

    def _encode_both(
        self, parameters: Parameters, support: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor, Statistics | None, Statistics]:
        """Features of support and query in training.

        Returns:
            Both features, the statistics that normalise the query (None = its own), and those to average over training.
        """
        mode = self.config.batch_norm
        if mode in ("running", "none"):
            both, seen = self.encoder.recorded(parameters, torch.cat([support, query]))
            return both[: len(support)], both[len(support) :], None, seen
        if mode == "transductive":
            return self.encoder(parameters, support), self.encoder(parameters, query), None, {}
        features, used = self.encoder.recorded(parameters, support, differentiable=True)
        return features, self.encoder(parameters, query, statistics=used), used, {}
