"""Episodic training: Adam on the mean loss of the episodes of a meta-batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Self, TypeVar

import torch
from torch import Tensor

from metarl.core.bounds import AtLeast, Positive
from metarl.core.data import Episodes
from metarl.core.tags import TRAIN_STEP
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.execution import MetaGradient
from metarl.fewshot.base.learner import ExampleBatch, FewShotConfig, FewShotLearner, Outcome, norm_of
from metarl.fewshot.base.networks import expanded
from metarl.fewshot.base.optimizer import MetaAdam
from metarl.gradients.adaptation import Parameters
from metarl.gradients.lifting import lifted

State = TypeVar("State")


@dataclass(frozen=True)
class EpisodicConfig(FewShotConfig):
    """Settings of the network and of episodic training."""

    outer_lr: Annotated[float, Positive] = 1e-3
    """Step size of Adam in meta-training."""
    halve_lr_every: Annotated[int | None, AtLeast(1)] = None
    """Updates after which outer_lr is halved, again and again; None = never."""
    clip_gradient: Annotated[float | None, Positive] = None
    """Each element of the meta-gradient is clipped to plus and minus this; None = no clipping."""


class EpisodicLearner(FewShotLearner[State]):
    """A learner that Adam trains on the loss of episodes."""

    config: EpisodicConfig

    def __init__(self, config: EpisodicConfig, spaces: ExampleSpaces, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        self._adam = MetaAdam(
            self.parameters, lr=config.outer_lr, halve_every=config.halve_lr_every, clip=config.clip_gradient
        )
        # In training, a loss reads only parameters, data, settings and buffers, so it can be compiled.
        self._mean_gradient = MetaGradient(self.summed_gradient, self.execution)

    @abstractmethod
    def summed_gradient(
        self, parameters: Parameters, query: ExampleBatch, support: tuple[ExampleBatch, ...]
    ) -> tuple[Parameters, Outcome]:
        """The gradient of the training loss, summed over some tasks, and the outcome of each, task axis leading."""

    def meta_update(self, episodes: Episodes[State, ExampleBatch]) -> dict[str, float]:
        """One step of Adam.

        The score is returned as `adapt/step_k`. Joint training does not adapt, so its score is returned as `accuracy`
        or `mse`.
        """
        gradients, outcome = self.meta_gradient(episodes.support, episodes.query)
        self.networks.parameters = self._adam.step(self.networks.parameters, gradients)
        self.networks.move_averages(outcome.statistics)
        score = self.score_name if self.traits.trains_jointly else f"{TRAIN_STEP}{len(episodes.support)}"
        norm = norm_of(gradients.values())
        return {"loss": float(outcome.loss.mean()), "gradient_norm": norm, score: float(outcome.score.mean())}

    def meta_gradient(self, support: tuple[ExampleBatch, ...], query: ExampleBatch) -> tuple[Parameters, Outcome]:
        """The mean over tasks of the loss's gradient, and each task's outcome, task axis leading."""
        return self._mean_gradient(self.networks.parameters, query, support)

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        self._adam.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._adam.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._adam.load_state_dict(state)
        if self.networks.buffers:
            self._mean_gradient.forget_graphs()


class TaskLossLearner(EpisodicLearner[State]):
    """An episodic learner whose loss is written for ONE task: subclasses define `episode_loss`."""

    @abstractmethod
    def episode_loss(
        self, parameters: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Tensor, Outcome]:
        """The loss of ONE task in meta-training, which the meta-update descends, and the outcome.

        Args:
            parameters: the meta-parameters.
            support: one batch for each adaptation step.
            query: the batch that judges the adapted state.
        """

    def summed_gradient(
        self, parameters: Parameters, query: ExampleBatch, support: tuple[ExampleBatch, ...]
    ) -> tuple[Parameters, Outcome]:
        num_tasks = len(query.inputs)
        if self.execution.shares_weights or num_tasks == 1:
            summed: tuple[Parameters, Outcome] = torch.func.grad(self._summed_loss, has_aux=True)(
                parameters, support, query
            )
            return summed
        per_task = lifted(torch.func.grad(self.episode_loss, has_aux=True))
        gradients, outcome = per_task(expanded(parameters, num_tasks), support, query)
        return {name: value.sum(0) for name, value in gradients.items()}, outcome

    def _summed_loss(
        self, parameters: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Tensor, Outcome]:
        """The loss, summed over some tasks, and each task's outcome. One pass reads the weights once for all tasks."""
        losses, outcome = lifted(partial(self.episode_loss, parameters))(support, query)
        return losses.sum(), outcome
