"""Learners that adapt by gradient steps on the support: what MAML, Reptile and fine-tuning share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from metarl.core.bounds import AtLeast, Positive
from metarl.core.errors import require
from metarl.core.learner import Traits
from metarl.fewshot.base.episodic import EpisodicConfig, TaskLossLearner
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch, FewShotConfig, FewShotLearner, Outcome, loss_of, score_of
from metarl.fewshot.base.networks import Network, Statistics, expanded
from metarl.gradients.adaptation import Parameters, StepSize, gradient_step


@dataclass(frozen=True)
class InnerLoopConfig(FewShotConfig):
    """Settings of the network and of an inner loop in meta-training."""

    inner_lr: Annotated[float, Positive] = 0.4
    """Step size of the inner loop; MAML's 0.4 on Omniglot, 0.01 on sinusoids and miniImageNet."""
    num_adaptation_steps: Annotated[int, AtLeast(1)] = 1
    """Inner steps in meta-training."""
    later_step_scale: Annotated[float, Positive] = 1.0
    """Factor on the step size of test-time steps beyond those of meta-training."""

    def step_size(self, step: int) -> float:
        """The step size of inner step `step`, counted from 0."""
        later = step >= self.num_adaptation_steps
        return self.inner_lr * (self.later_step_scale if later else 1.0)


@dataclass(frozen=True)
class GradientConfig(InnerLoopConfig, EpisodicConfig):
    """Settings of the network, of the inner loop and of episodic training."""


class Adapted(NamedTuple):
    """The adapted state.

    Attributes:
        parameters: of every task.
        statistics: of the support under these parameters, if they normalise the query; else empty.
    """

    parameters: Parameters
    statistics: Statistics


class SteppingLearner(FewShotLearner[Adapted]):
    """A learner that adapts by gradient steps: an encoder, and a linear layer on its features.

    It does not define training. `GradientLearner` trains through the steps; Reptile has its own training.
    """

    traits = Traits(unit="gradient steps", adapts_in_update=True)

    def _require_fit(self) -> None:
        super()._require_fit()
        spaces = self.spaces
        fits = not spaces.discrete or spaces.train_ways == spaces.num_outputs or self.traits.trains_jointly
        allowed = f"task.num_ways = {spaces.num_outputs}: the last layer has one output for each class"
        require(fits, "task.train_ways", spaces.train_ways, allowed)

    def _add_networks(self, generator: torch.Generator) -> None:
        head = nn.Linear(math.prod(self.feature_shape), self.spaces.num_outputs)
        nn.init.xavier_uniform_(head.weight, generator=generator)
        nn.init.zeros_(head.bias)
        self.head = self.networks.add(Network(head, name="head"))

    @abstractmethod
    def step_size(self, step: int) -> StepSize:
        """The step size of adaptation step `step`, counted from 0. Learned step sizes are multiplied by it."""

    def outputs(self, parameters: Parameters, inputs: Tensor, statistics: Statistics | None = None) -> Tensor:
        """[E, num_outputs], for ONE task."""
        features = self.encoder(parameters, inputs, statistics=statistics)
        return self.head(parameters, features.flatten(1))

    def inner_loss(self, parameters: Parameters, batch: ExampleBatch) -> Tensor:
        """The loss of ONE task's support in meta-training, normalised by the support's own statistics."""
        return loss_of(self.outputs(parameters, batch.inputs), batch.targets)

    def test_loss(self, parameters: Parameters, batch: ExampleBatch) -> Tensor:
        """The loss of ONE task's support at test time."""
        return loss_of(self.outputs(parameters, batch.inputs, self._test_statistics()), batch.targets)

    def query_outcome(
        self, parameters: Parameters, support: ExampleBatch, query: ExampleBatch
    ) -> tuple[Tensor, Outcome]:
        """Loss and outcome of ONE task's query in meta-training, for the adapted `parameters`."""
        seen: Statistics = {}
        if self.config.batch_norm == "running":
            features, seen = self.encoder.recorded(parameters, query.inputs)
            outputs = self.head(parameters, features.flatten(1))
        else:
            outputs = self.outputs(parameters, query.inputs, self._support_statistics(parameters, support) or None)
        loss = loss_of(outputs, query.targets)
        return loss, Outcome(loss, score_of(outputs, query.targets), seen)

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Adapted:
        source = self.parameters if parameters is None else parameters
        # Before any support is seen, the running averages stand for its statistics.
        statistics = self.networks.statistics if self.config.batch_norm == "support" else {}
        return Adapted(expanded(source, num_tasks), expanded(statistics, num_tasks))

    def adapt(self, state: Adapted, support: ExampleBatch, *, step: int, differentiable: bool = False) -> Adapted:
        def one_task(parameters: Parameters, batch: ExampleBatch) -> Adapted:
            adapted = self._step(parameters, batch, step)
            return Adapted(adapted, self._support_statistics(adapted, batch))

        with torch.set_grad_enabled(differentiable):
            return self.execution.over_tasks(one_task, state.parameters, support)

    def predict(self, state: Adapted, inputs: Tensor) -> Tensor:
        def one_task(parameters: Parameters, statistics: Statistics, inputs: Tensor) -> Tensor:
            return self.outputs(parameters, inputs, self._test_statistics() or statistics or None)

        return self.execution.over_tasks(one_task, *state, inputs)

    def _step(self, parameters: Parameters, batch: ExampleBatch, step: int) -> Parameters:
        """One step of ONE task at test time."""
        return gradient_step(self.test_loss, parameters, batch, self.step_size(step))

    def _support_statistics(self, parameters: Parameters, support: ExampleBatch) -> Statistics:
        """Statistics of ONE task's support, if they normalise the query; else empty."""
        if self.config.batch_norm != "support":
            return {}
        return self.encoder.recorded(parameters, support.inputs, differentiable=True)[1]


class GradientLearner(SteppingLearner, TaskLossLearner[Adapted]):
    """A learner that takes inner steps in meta-training too. Subclasses define its `episode_loss`."""

    config: GradientConfig

    def __init__(self, config: GradientConfig, spaces: ExampleSpaces, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        self.num_adaptation_steps = config.num_adaptation_steps

    def step_size(self, step: int) -> StepSize:
        return self.config.step_size(step)
