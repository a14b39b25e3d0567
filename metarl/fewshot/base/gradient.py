"""Learners that adapt by gradient steps on the support: what MAML, Reptile and fine-tuning share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metarl.core.errors import require
from metarl.core.learner import Traits
from metarl.fewshot.base.encoders import Network, Statistics
from metarl.fewshot.base.learner import ExampleBatch, FewShotConfig, FewShotLearner, Outcome, loss_of, score_of
from metarl.gradients.adaptation import Parameters, StepSize, gradient_step


@dataclass(frozen=True)
class GradientConfig(FewShotConfig):
    """Settings of the inner loop."""

    inner_lr: float = 0.4
    """Step size of the inner loop; MAML's 0.4 on Omniglot, 0.01 on sinusoids and miniImageNet."""
    num_adaptation_steps: int = 1
    """Inner steps in meta-training."""
    later_step_scale: float = 1.0
    """Factor on the step size of test-time steps beyond those of meta-training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("inner_lr", "later_step_scale"):
            require(0.0 < getattr(self, name) < math.inf, f"agent.{name}", getattr(self, name), "a positive number")
        steps = self.num_adaptation_steps
        require(steps >= 1, "agent.num_adaptation_steps", steps, "an integer >= 1")


class Adapted(NamedTuple):
    """The adapted state.

    Attributes:
        parameters: of every task.
        statistics: of the support under these parameters, where the query is normalised by them; else empty.
    """

    parameters: Parameters
    statistics: Statistics


class GradientLearner(FewShotLearner[Adapted]):
    """A learner but for its `episode_loss`: an encoder, and a linear layer on its features."""

    traits = Traits(unit="gradient steps", adapts_in_update=True)
    config: GradientConfig

    def _require_fit(self) -> None:
        super()._require_fit()
        spaces = self.spaces
        fits = not spaces.discrete or spaces.train_ways == spaces.num_outputs or self.traits.trains_jointly
        allowed = f"task.num_ways = {spaces.num_outputs}: the last layer has an output for each"
        require(fits, "task.train_ways", spaces.train_ways, allowed)

    def _add_networks(self, generator: torch.Generator) -> None:
        head = nn.Linear(math.prod(self.feature_shape), self.spaces.num_outputs)
        nn.init.xavier_uniform_(head.weight, generator=generator)
        nn.init.zeros_(head.bias)
        self.head = self._add(Network(head, name="head"))

    @abstractmethod
    def episode_loss(
        self, parameters: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Tensor, Outcome]: ...

    def outputs(self, parameters: Parameters, inputs: Tensor, statistics: Statistics | None = None) -> Tensor:
        """[E, num_outputs], for ONE task."""
        features = self.encoder(parameters, inputs, statistics=statistics)
        return self.head(parameters, features.flatten(1))

    def inner_loss(self, parameters: Parameters, batch: ExampleBatch) -> Tensor:
        """Of ONE task, by the batch's own statistics."""
        return loss_of(self.outputs(parameters, batch.inputs), batch.targets)

    def test_loss(self, parameters: Parameters, batch: ExampleBatch) -> Tensor:
        """Of ONE task's support at test time."""
        return loss_of(self.outputs(parameters, batch.inputs, self._test_statistics()), batch.targets)

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Adapted:
        statistics = self._expanded(num_tasks, self._unseen_statistics())
        return Adapted(self._expanded(num_tasks, parameters), statistics)

    def adapt(self, state: Adapted, support: ExampleBatch, *, step: int, differentiable: bool = False) -> Adapted:
        def one_task(parameters: Parameters, batch: ExampleBatch) -> Adapted:
            adapted = self._step(parameters, batch, step)
            return Adapted(adapted, self._seen_statistics(adapted, batch))

        with torch.set_grad_enabled(differentiable):
            adapted: Adapted = self._lift(one_task, state.parameters, support)
        return adapted

    def score(self, state: Adapted, query: ExampleBatch) -> Tensor:
        def one_task(parameters: Parameters, statistics: Statistics, batch: ExampleBatch) -> Tensor:
            given = self._test_statistics() or statistics or None
            return score_of(self.outputs(parameters, batch.inputs, given), batch.targets)

        with torch.no_grad():
            scores: Tensor = self._lift(one_task, *state, query)
        return scores

    def step_size(self, step: int) -> StepSize:
        """Of inner step `step`; learned step sizes are multiplied by it."""
        later = step >= self.config.num_adaptation_steps
        return self.config.inner_lr * (self.config.later_step_scale if later else 1.0)

    def query_outcome(
        self, parameters: Parameters, support: ExampleBatch, query: ExampleBatch
    ) -> tuple[Tensor, Outcome]:
        """Of ONE task in meta-training: loss, score and batch statistics of the adapted `parameters` on the query."""
        seen: Statistics = {}
        if self.config.batch_norm == "running":
            features, seen = self.encoder.recorded(parameters, query.inputs)
            outputs = self.head(parameters, features.flatten(1))
        else:
            outputs = self.outputs(parameters, query.inputs, self._seen_statistics(parameters, support) or None)
        loss = loss_of(outputs, query.targets)
        return loss, Outcome(loss, score_of(outputs, query.targets), seen)

    def _step(self, parameters: Parameters, batch: ExampleBatch, step: int) -> Parameters:
        """One step of ONE task at test time."""
        return gradient_step(self.test_loss, parameters, batch, self.step_size(step))

    def _test_statistics(self) -> Statistics | None:
        """What normalises support and query at test time; None = other statistics."""
        return self._statistics if self.config.batch_norm == "running" and self._statistics else None

    def _unseen_statistics(self) -> Statistics:
        """What stands for the support's statistics before there is any support."""
        return self._statistics if self.config.batch_norm == "support" else {}

    def _seen_statistics(self, parameters: Parameters, support: ExampleBatch) -> Statistics:
        """Of ONE task's support, where the query is normalised by them; else empty."""
        if self.config.batch_norm != "support":
            return {}
        return self.encoder.recorded(parameters, support.inputs, differentiable=True)[1]
