"""What all few-shot learners share: networks, how tasks are computed, prepared examples, scores and checkpoints.

Two choices make an algorithm: how it adapts to a task, and how it is trained. `SteppingLearner` adapts by gradient
steps, `MetricLearner` by comparing with the support. `EpisodicLearner` trains by Adam on the loss of whole episodes.

Shape legend: N num_tasks, E examples, W ways, D features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.data import Episodes, Examples
from metarl.core.errors import require
from metarl.core.learner import ScoreName, Traits
from metarl.fewshot.base.encoders import EncoderConfig, make_encoder
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.execution import Execution, ExecutionMode
from metarl.fewshot.base.networks import Network, Networks, Statistics

State = TypeVar("State")


@dataclass(frozen=True)
class FewShotConfig(EncoderConfig):
    """Settings that every few-shot learner has."""

    execution: ExecutionMode = "auto"
    """How the tasks of a meta-batch are computed. loop: each task alone, in parallel on a CPU's cores. vmap: in batched
    operations. auto: loop for images on a CPU (batched convolutions are slow there), vmap for conv4-strided and
    everything else. compiled: as auto, with meta-gradients compiled by torch.compile, which takes a minute or two. On a
    GPU, convolutions then become matrix products."""


class ExampleBatch(NamedTuple):
    """Prepared examples. Those of ONE task have the same axes without the leading one.

    Attributes:
        inputs: [N, E, ...].
        targets: [N, E] int64 labels, or [N, E, num_outputs] values.
        classes: [N, E] int64 global class numbers; zeros for regression.
    """

    inputs: Tensor
    targets: Tensor
    classes: Tensor


class Outcome(NamedTuple):
    """Loss and score of one task in meta-training.

    Attributes:
        loss: scalar.
        score: scalar, after adaptation.
        statistics: of the batch norms, where running averages of them are kept; else empty.
    """

    loss: Tensor
    score: Tensor
    statistics: Statistics


class FewShotLearner(ABC, Generic[State]):
    """A learner without an adapted state and without a way to train: subclasses add both.

    A subclass may add networks and parameters in `_add_networks`, and refuse tasks in `_require_fit`.

    Args:
        config: settings.
        spaces: of the tasks.
        generator: draws the initial weights.

    Attributes:
        second_order: training takes second derivatives of the encoder.
        reads_descriptions: the support is vectors that describe the classes.
        networks: the encoder and all other networks, their parameters and running averages.
        execution: computes functions of one task for many.
    """

    traits: ClassVar[Traits]
    second_order: ClassVar[bool] = False
    reads_descriptions: ClassVar[bool] = False
    num_adaptation_steps: int = 1
    config: FewShotConfig

    def __init__(self, config: FewShotConfig, spaces: ExampleSpaces, *, generator: torch.Generator) -> None:
        self.config = config
        self.spaces = spaces
        self._require_fit()
        self.score_name: ScoreName = "accuracy" if spaces.discrete else "mse"
        self.networks = Networks()
        self.encoder = self.networks.add(Network(self._make_encoder(generator), name="encoder"))
        with torch.no_grad():
            example = torch.zeros(2, *spaces.input_shape)
            self.feature_shape = tuple(self.encoder(self.encoder.parameters, example).shape[1:])
        self._add_networks(generator)
        allowed = "one that has parameters; without them, nothing is learned"
        require(bool(self.networks.parameters), "agent.encoder", config.encoder, allowed)
        self.execution = Execution(
            config.execution, config.encoder, self.networks, spaces.input_shape, second_order=self.second_order
        )

    def _require_fit(self) -> None:
        """Raises an InputError for tasks that the learner cannot learn, and for settings that do not fit them."""
        allowed = "proto-zero-shot: the support of these tasks is descriptions of the classes"
        require(self.reads_descriptions or not self.spaces.description_size, "agent", type(self).__name__, allowed)

    def _make_encoder(self, generator: torch.Generator) -> nn.Module:
        return make_encoder(self.config, self.spaces.input_shape, generator=generator)

    def _add_networks(self, generator: torch.Generator) -> None:
        """Adds networks (`self.networks.add`) and parameters (`self.networks.parameters`) beside the encoder's."""

    @abstractmethod
    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> State:
        """As in `metarl.core.learner.Learner`."""

    @abstractmethod
    def adapt(self, state: State, support: ExampleBatch, *, step: int, differentiable: bool = False) -> State:
        """As in `metarl.core.learner.Learner`, as at test time."""

    @abstractmethod
    def predict(self, state: State, inputs: Tensor) -> Tensor:
        """Predictions for inputs [N, E, ...], as at test time.

        Returns:
            [N, E, W] log-probabilities up to a constant for each example, or [N, E, num_outputs] values.
        """

    @abstractmethod
    def meta_update(self, episodes: Episodes[State, ExampleBatch]) -> dict[str, float]:
        """As in `metarl.core.learner.Learner`."""

    def prepare(self, data: Examples) -> ExampleBatch:
        numbers = data.classes
        classes = torch.zeros(data.inputs.shape[:2], dtype=torch.int64, device=data.inputs.device)
        return ExampleBatch(data.inputs, data.targets, classes if numbers is None else numbers)

    def score(self, state: State, query: ExampleBatch) -> Tensor:
        """[N]: accuracy, or mean squared error, as at test time."""
        with torch.no_grad():
            return self.execution.over_tasks(score_of, self.predict(state, query.inputs), query.targets)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return self.networks.parameters

    @property
    def device(self) -> torch.device:
        return self.networks.device

    @property
    def settings(self) -> dict[str, str]:
        """Settings that a report must show beside a score."""
        return {"batch_norm": self.config.batch_norm} if self.networks.statistics else {}

    def to(self, device: torch.device | str) -> Self:
        self.execution.require_device(device)
        self.networks.to(device)
        self.execution.choose()
        return self

    def state_dict(self) -> dict[str, Any]:
        return self.networks.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.networks.load_state_dict(state)

    def _test_statistics(self) -> Statistics | None:
        """The running averages, if they normalise at test time; else None."""
        return self.networks.statistics or None if self.config.batch_norm == "running" else None


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [E, W] and labels [E], or mean squared error of [E, num_outputs]."""
    if targets.dtype == torch.int64:
        return functional.cross_entropy(outputs, targets)
    return functional.mse_loss(outputs, targets)


def score_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Accuracy, or mean squared error."""
    if targets.dtype == torch.int64:
        return (outputs.argmax(-1) == targets).to(outputs.dtype).mean()
    return functional.mse_loss(outputs, targets)


def joined(batches: Sequence[ExampleBatch]) -> ExampleBatch:
    """All examples of some batches of ONE task as one batch."""
    return ExampleBatch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def one_hot(labels: Tensor, num_ways: int) -> Tensor:
    """[..., W] float32 of labels [...] from 0 to W - 1."""
    return (labels.unsqueeze(-1) == torch.arange(num_ways, device=labels.device)).float()


def norm_of(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm of all elements together."""
    return math.sqrt(sum(float(value.square().sum()) for value in tensors))
