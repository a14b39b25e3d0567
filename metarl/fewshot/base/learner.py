"""What all few-shot learners share: parameters, their optimiser, batch statistics, and one update on a meta-batch.

An algorithm is a subclass that says what a task's state is and what the loss of one episode is.

Shape legend: N num_tasks, E examples, W ways, D features.
"""

from __future__ import annotations

import contextlib
import logging
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.config import LearnerConfig
from metarl.core.data import Episodes, Examples
from metarl.core.errors import InputError, require
from metarl.core.learner import ScoreName, Traits, loaded
from metarl.core.tags import TRAIN_STEP
from metarl.core.trees import to_device, tree_map, tree_zip
from metarl.fewshot.base.compiled import Compiled
from metarl.fewshot.base.encoders import EncoderConfig, Network, Statistics, make_encoder
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.foreign import Trial, calling, is_foreign
from metarl.gradients.adam import Moments, adam_step, no_moments
from metarl.gradients.adaptation import Parameters
from metarl.gradients.lifting import chunk_length, chunkwise, lifted, num_tasks_of, rejoined

_logger = logging.getLogger(__name__)

Execution = Literal["auto", "loop", "vmap", "compiled"]
EXECUTIONS = ("auto", "loop", "vmap", "compiled")
TASKS_AT_ONCE = 16  # images, batched on a CPU: fewer cost time for each operation, more leave its cache
State = TypeVar("State")


@dataclass(frozen=True)
class FewShotConfig(EncoderConfig, LearnerConfig):
    """Settings of the network and of meta-training."""

    num_adaptation_steps: int = field(default=1, init=False)  # a setting where training takes inner steps
    outer_lr: float = 1e-3
    """Step size of Adam in meta-training."""
    halve_lr_every: int | None = None
    """Updates after which outer_lr is halved, again and again; None = never."""
    clip_gradient: float | None = None
    """Elements of the meta-gradient are cut off at plus and minus this; None = not."""
    execution: Execution = "auto"
    """How the tasks of a meta-batch are computed: loop = one by one, side by side on the cores of a CPU; vmap = in
    batched operations; auto = loop for images on a CPU, whose convolutions batched would be grouped and slow, but for
    those of conv4-strided, which are small; else vmap; compiled = as auto, but meta-gradients by a graph that
    torch.compile makes in a minute or two, on a GPU with convolutions as matrix products."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.outer_lr < math.inf, "agent.outer_lr", self.outer_lr, "a positive number")
        every = self.halve_lr_every
        require(every is None or every >= 1, "agent.halve_lr_every", every, "an integer >= 1, or left out")
        clip = self.clip_gradient
        require(clip is None or 0.0 < clip < math.inf, "agent.clip_gradient", clip, "a positive number, or left out")
        allowed = "one of " + ", ".join(map(repr, EXECUTIONS))
        require(self.execution in EXECUTIONS, "agent.execution", self.execution, allowed)


class ExampleBatch(NamedTuple):
    """Prepared examples; of ONE task, the same without the leading axis.

    Attributes:
        inputs: [N, E, ...].
        targets: [N, E] int64 labels, or [N, E, num_outputs].
        classes: [N, E] int64 global class numbers; zeros where there are none.
    """

    inputs: Tensor
    targets: Tensor
    classes: Tensor


class Outcome(NamedTuple):
    """What one task's loss came from.

    Attributes:
        loss: scalar.
        score: scalar, after adaptation.
        statistics: of the batch norms, where running averages of them are kept.
    """

    loss: Tensor
    score: Tensor
    statistics: Statistics


class FewShotLearner(ABC, Generic[State]):
    """A learner but for its adapted state and its loss.

    Args:
        config: settings.
        spaces: of the tasks.
        generator: draws the initial weights.

    Attributes:
        reads_descriptions: the support is vectors that describe the classes.
        second_order: training takes second derivatives of the encoder.
    """

    traits: ClassVar[Traits]
    config: Any
    reads_descriptions = False
    second_order = False

    def __init__(self, config: FewShotConfig, spaces: ExampleSpaces, *, generator: torch.Generator) -> None:
        self.config = config
        self.spaces = spaces
        self._require_fit()
        self.num_adaptation_steps: int = config.num_adaptation_steps
        self.score_name: ScoreName = "accuracy" if spaces.discrete else "mse"
        self.encoder = Network(self._make_encoder(generator), name="encoder")
        with torch.no_grad():
            example = torch.zeros(2, *spaces.input_shape)
            self.feature_shape = tuple(self.encoder(self.encoder.parameters, example).shape[1:])
        self._parameters: Parameters = {}
        self._statistics: Statistics = {}
        self._networks: list[Network] = []
        self._add(self.encoder)
        self._add_networks(generator)
        require(bool(self._parameters), "agent.encoder", config.encoder, "one that has parameters: nothing else learns")
        self._moments = no_moments(self._parameters)
        self._num_updates = 0
        # An episode's loss in training reads the parameters and the data it is given, settings and buffers: it can be
        # compiled, until the buffers change.
        self._compiled = Compiled(self._gradient_of)
        self._choose_execution()

    def _require_fit(self) -> None:
        """Refuses tasks that the learner is not for, and settings that do not suit them, in one line each."""
        allowed = "proto-zero-shot: the support of these tasks is descriptions of the classes"
        require(self.reads_descriptions or not self.spaces.description_size, "agent", type(self).__name__, allowed)

    def _make_encoder(self, generator: torch.Generator) -> nn.Module:
        return make_encoder(self.config, self.spaces.input_shape, generator=generator)

    def _add_networks(self, generator: torch.Generator) -> None:
        """Adds what the learner has beside the encoder: networks with `_add`, or plain parameters."""

    def _add(self, network: Network) -> Network:
        self._networks.append(network)
        self._parameters |= network.parameters
        self._statistics |= network.statistics
        return network

    @abstractmethod
    def episode_loss(
        self, parameters: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Tensor, Outcome]:
        """Of ONE task in meta-training: what the meta-update descends, and all of the outcome."""

    @abstractmethod
    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> State:
        """As in `metarl.core.learner.Learner`."""

    @abstractmethod
    def adapt(self, state: State, support: ExampleBatch, *, step: int, differentiable: bool = False) -> State:
        """As in `metarl.core.learner.Learner`, as at test time."""

    @abstractmethod
    def score(self, state: State, query: ExampleBatch) -> Tensor:
        """[N]: accuracy, or mean squared error, as at test time."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return self._parameters

    @property
    def _buffers(self) -> Parameters:
        return {name: value for network in self._networks for name, value in network.buffers.items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self._parameters.values())).device

    @property
    def settings(self) -> dict[str, str]:
        """What must stand beside a score of this learner."""
        return {"batch_norm": self.config.batch_norm} if self._statistics else {}

    def to(self, device: torch.device | str) -> Self:
        can_compile = self.config.execution != "compiled" or torch.device(device).type in ("cpu", "cuda")
        require(can_compile, "agent.execution", "compiled", f"'auto', 'loop' or 'vmap' on {device}")
        self._parameters, self._statistics, self._moments = to_device(
            (self._parameters, self._statistics, self._moments), device
        )
        for network in self._networks:
            network.buffers = to_device(network.buffers, device)
        self._choose_execution()
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "parameters": dict(self._parameters),
            "statistics": dict(self._statistics),
            "adam": self._moments._asdict(),
            "num_updates": self._num_updates,
            "buffers": self._buffers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        buffers = loaded(self._buffers, state.get("buffers", {}), what="buffers")  # earlier versions saved none
        parts = [
            loaded(own, saved, what=what)
            for what, own, saved in (
                ("parameters", self._parameters, state["parameters"]),
                ("statistics", self._statistics, state["statistics"]),
                ("first moments", self._moments.first, state["adam"]["first"]),
                ("second moments", self._moments.second, state["adam"]["second"]),
            )
        ]
        self._parameters, self._statistics, *moments = parts
        self._moments = Moments(state["adam"]["num_steps"].to(self.device, copy=True), *moments)
        self._num_updates = int(state["num_updates"])
        for network in self._networks:
            network.buffers = {name: buffers[name] for name in network.buffers}
        if buffers:
            self._compiled = Compiled(self._gradient_of)

    def prepare(self, data: Examples) -> ExampleBatch:
        numbers = data.classes
        classes = torch.zeros(data.inputs.shape[:2], dtype=torch.int64, device=data.inputs.device)
        return ExampleBatch(data.inputs, data.targets, classes if numbers is None else numbers)

    def meta_update(self, episodes: Episodes[State, ExampleBatch]) -> dict[str, float]:
        """One step of Adam on the mean loss of the meta-batch. What it reports as `train/accuracy` or `train/mse`
        instead of `adapt/step_k` is the score of joint training."""
        gradients, outcome = self.meta_gradient(episodes.support, episodes.query)
        norm = self._descend(gradients)
        self._remember(outcome.statistics)
        score = self.score_name if self.traits.trains_jointly else f"{TRAIN_STEP}{len(episodes.support)}"
        return {"loss": float(outcome.loss.mean()), "gradient_norm": norm, score: float(outcome.score.mean())}

    def meta_gradient(self, support: tuple[ExampleBatch, ...], query: ExampleBatch) -> tuple[Parameters, Outcome]:
        """The mean over tasks of the loss's gradient, and each task's outcome, task axis leading."""
        gradient: Callable[..., Any] = self._gradient_of
        if self.config.execution == "compiled":
            gradient = self._compiled
            self._compile(support, query)
        parts = self._chunkwise(partial(gradient, self._parameters), support, query)
        total = tree_zip(partial(reduce, operator.add), [part for part, _ in parts])
        outcome = rejoined([outcome for _, outcome in parts])
        return {name: value / len(query.inputs) for name, value in total.items()}, tree_map(Tensor.detach, outcome)

    def _compile(self, support: tuple[ExampleBatch, ...], query: ExampleBatch) -> None:
        """For as many tasks as will be computed at once. Batched on a GPU, products are faster than grouped
        convolutions, but only in a graph."""
        num_tasks = len(query.inputs)
        at_once = slice(chunk_length(num_tasks, self._tasks_at_once(num_tasks)))
        for network in self._networks:
            network.multiplies = self._batched and self.device.type != "cpu"
        with self._foreign_code():
            self._compiled.prepare(self._parameters, *tree_map(operator.itemgetter(at_once), (support, query)))
        for network in self._networks:
            network.multiplies = False

    def _gradient_of(
        self, parameters: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Parameters, Outcome]:
        """The sum over some tasks of the loss's gradient, and each one's outcome."""
        if self._weights_are_shared or len(query.inputs) == 1:
            summed: tuple[Parameters, Outcome] = torch.func.grad(self._summed_loss, has_aux=True)(
                parameters, support, query
            )
            return summed
        per_task = lifted(torch.func.grad(self.episode_loss, has_aux=True))
        gradients, outcome = per_task(self._expanded(len(query.inputs), parameters), support, query)
        return {name: value.sum(0) for name, value in gradients.items()}, outcome

    def _summed_loss(
        self, parameters: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Tensor, Outcome]:
        """The sum over some tasks of the loss, and each one's outcome. Its gradient is the sum of theirs, by passes
        that see the weights once and not once for each task."""
        losses, outcome = lifted(partial(self.episode_loss, parameters))(support, query)
        return losses.sum(), outcome

    def _expanded(self, num_tasks: int, parameters: Mapping[str, Tensor] | None = None) -> Parameters:
        source = self._parameters if parameters is None else parameters
        return {name: value.expand(num_tasks, *value.shape) for name, value in source.items()}

    def _lift(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function`, written for one task, over the leading axis of all tensors in `arguments`."""
        return rejoined(self._chunkwise(lifted(function), *arguments))

    def _chunkwise(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function`, written for several tasks, returns for as many at once as `execution` says."""
        num_tasks = num_tasks_of(arguments)
        with self._foreign_code():
            if self._batched or self.device.type == "cpu":
                return chunkwise(function, *arguments, chunk_size=self._tasks_at_once(num_tasks))
            return [function(*tree_map(operator.itemgetter(slice(i, i + 1)), arguments)) for i in range(num_tasks)]

    def _foreign_code(self) -> contextlib.AbstractContextManager[None]:
        """The context for calls of the encoder, which may be the user's own."""
        return calling(self.config.encoder, plain=self.second_order or self._batched)

    def _tasks_at_once(self, num_tasks: int) -> int | None:
        """How many of `num_tasks` are computed at once, at most; None = all of them. The number of cores has no say,
        since the last bits of what is batched depend on this."""
        if not self._batched:
            return 1
        if self.device.type != "cpu" or len(self.spaces.input_shape) == 1:
            return None
        return min(TASKS_AT_ONCE, num_tasks if num_tasks % 2 else num_tasks // 2)  # two equal parts: for two cores

    def _choose_execution(self) -> None:
        """Decides, for the device where the parameters are, how tasks are computed."""
        slow = self.device.type == "cpu" and len(self.spaces.input_shape) > 1 and self.config.encoder != "conv4-strided"
        mode = self.config.execution
        self._batched = mode == "vmap" or (mode != "loop" and not slow)
        if is_foreign(self.config.encoder) and self.encoder.parameters:
            self._try_encoder()
        self._weights_are_shared = self._batched and all(network.can_share for network in self._networks)
        for network in self._networks:
            network.shares = self._weights_are_shared

    def _try_encoder(self) -> None:
        """Refuses an encoder whose derivatives do not work with `execution`; "auto" runs tasks one by one instead."""
        name, mode = self.config.encoder, self.config.execution
        own = {key: self._parameters[key] for key in self.encoder.parameters}
        trial = Trial(self.encoder, own, self.spaces.input_shape, twice=self.second_order)
        fault = trial.fault()
        order = "second derivative" if self.second_order else "derivative"
        if fault:
            raise InputError(f"agent.encoder = {name!r}: must be a module that has a {order}: {fault}")
        if self._batched and (fault := trial.fault(batched=True)):
            if mode == "vmap":
                raise InputError(f"agent.execution = 'vmap': must be 'loop' or 'auto' for {name}: {fault}")
            _logger.warning("agent.execution = %r: tasks run one by one, %s cannot be batched: %s", mode, name, fault)
            self._batched = False
        if mode == "compiled" and (fault := trial.fault(batched=self._batched, traced=True)):
            raise InputError(f"agent.execution = 'compiled': must be 'auto', 'loop' or 'vmap' for {name}: {fault}")

    def _descend(self, gradients: Parameters) -> float:
        """One step down; returns the gradient's norm."""
        clip, every = self.config.clip_gradient, self.config.halve_lr_every
        norm = math.sqrt(sum(float(value.square().sum()) for value in gradients.values()))
        if clip is not None:
            gradients = {name: value.clamp(-clip, clip) for name, value in gradients.items()}
        lr = self.config.outer_lr * 0.5 ** (0 if every is None else self._num_updates // every)
        moving = {name: self._parameters[name] for name in gradients}
        stepped, self._moments = adam_step(moving, gradients, self._moments, lr)
        self._parameters = {**self._parameters, **stepped}
        self._num_updates += 1
        return norm

    def _remember(self, statistics: Statistics) -> None:
        """Moves the running averages towards the tasks' `statistics`, task axis leading; torch's layers would keep the
        unbiased variance."""
        momenta = {name: momentum for network in self._networks for name, momentum in network.momenta.items()}
        for name, value in statistics.items():
            share = momenta[name]
            self._statistics[name] = (1.0 - share) * self._statistics[name] + share * value.mean(0)


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
