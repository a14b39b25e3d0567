"""Reptile for examples: train on a task for a few mini-batches, then move the weights towards the trained ones.

Alex Nichol, Joshua Achiam, John Schulman: On First-Order Meta-Learning Algorithms. 2018, arXiv:1803.02999. The inner
optimiser is Adam without momentum. Training uses only the support. In the paper, the support has more examples of each
class in training (`task.train_shots`) than in testing.

Differs from the paper:
- The tasks of a meta-batch are trained independently; the authors' code trains one after another. It carries Adam's
  second moments from task to task. Here, their mean over the tasks is carried to the next meta-batch.
- The authors' test without transduction normalises each query by the support and that query.
  `batch_norm = "support"` normalises by the support alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor

from metarl.core.bounds import AtLeast, Positive
from metarl.core.data import Episodes
from metarl.core.learner import loaded
from metarl.core.tags import TRAIN_STEP
from metarl.core.trees import to_device
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.gradient import Adapted, InnerLoopConfig, SteppingLearner
from metarl.fewshot.base.learner import ExampleBatch, Outcome, norm_of
from metarl.gradients.adam import no_moments, packed, packed_mean, packed_step
from metarl.gradients.adaptation import Parameters


@dataclass(frozen=True)
class ReptileConfig(InnerLoopConfig):
    """Settings of Reptile."""

    inner_lr: Annotated[float, Positive] = 1e-3
    """Step size of the inner Adam."""
    num_adaptation_steps: Annotated[int, AtLeast(1)] = 5
    """Mini-batches per task in meta-training; 1 = joint training."""
    inner_batch_size: Annotated[int, AtLeast(1)] = 10
    """Examples of a mini-batch. Mini-batches go through the support in order and start again at its end."""
    test_batch_size: Annotated[int | None, AtLeast(1)] = 5
    """Examples of a mini-batch at test time; None = inner_batch_size."""
    reset_moments: bool = False
    """Start every task with Adam's second moments at zero, instead of their mean after the last meta-batch."""
    meta_step_size: Annotated[float, Positive] = 1.0
    """Size of the step towards the mean of the trained weights, at the first iteration; 1 = the whole way."""
    schedule_iterations: Annotated[int | None, AtLeast(1)] = None
    """Iterations in which meta_step_size falls linearly to zero; None = it is constant."""
    execution: Literal["auto", "loop", "vmap"] = "auto"
    """How the tasks of a meta-batch are computed. loop: each task alone, in parallel on a CPU's cores. vmap: in batched
    operations. auto: loop for images on a CPU (batched convolutions are slow there), vmap for conv4-strided and
    everything else."""


class Reptile(SteppingLearner):
    """A few steps of Adam per task, then a step towards the mean of the trained weights.

    The adapted state holds Adam's state beside the parameters: `num_steps` and `second.<name>`.
    """

    Config = ReptileConfig
    config: ReptileConfig
    traits = replace(
        SteppingLearner.traits,
        defaults={"trainer": {"meta_batch_size": 5}, "evaluation": {"num_adaptation_steps": 50}},
    )

    def __init__(self, config: ReptileConfig, spaces: ExampleSpaces, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        self.num_adaptation_steps = config.num_adaptation_steps
        self._carried = packed(no_moments(self.parameters, momentum=False))
        self._num_updates = 0

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        self._carried = to_device(self._carried, device)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "num_updates": self._num_updates, "carried": dict(self._carried)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        carried = loaded(self._carried, state["carried"], what="carried moments")
        super().load_state_dict(state)
        self._carried = carried
        self._num_updates = int(state["num_updates"])

    def step_size(self, step: int) -> float:
        return self.config.step_size(step)

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Adapted:
        source = self.parameters if parameters is None else parameters
        return super().begin(num_tasks, parameters={**source, **self._carried})

    def meta_update(self, episodes: Episodes[Adapted, ExampleBatch]) -> dict[str, float]:
        """Trains on each task, then steps towards the mean of the trained weights."""
        state = self.begin(len(episodes.tasks)).parameters
        with torch.no_grad():
            trained, outcome = self.execution.over_tasks(self._train, state, episodes.support, episodes.query)
        share = self.meta_step_size()
        moves = {name: share * (trained[name].mean(0) - old) for name, old in self.parameters.items()}
        self.networks.parameters = {name: old + moves[name] for name, old in self.parameters.items()}
        self._num_updates += 1
        if not self.config.reset_moments:
            self._carried = packed_mean(trained, self.parameters)
        self.networks.move_averages(outcome.statistics)
        last = f"{TRAIN_STEP}{len(episodes.support)}"
        scores = {"loss": float(outcome.loss.mean()), last: float(outcome.score.mean())}
        return {**scores, "move_norm": norm_of(moves.values()), "meta_step_size": share}

    def meta_step_size(self) -> float:
        """The step size of the next meta-update."""
        schedule = self.config.schedule_iterations
        left = 1.0 if schedule is None else max(0.0, 1.0 - self._num_updates / schedule)
        return self.config.meta_step_size * left

    def _train(
        self, state: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Parameters, Outcome]:
        for step, batch in enumerate(support):
            chosen = mini_batch(batch, step, self.config.inner_batch_size)
            state = packed_step(state, torch.func.grad(self.inner_loss)(self._own(state), chosen), self.config.inner_lr)
        return state, self.query_outcome(state, support[-1], query)[1]

    def _step(self, parameters: Parameters, batch: ExampleBatch, step: int) -> Parameters:
        size = self.config.test_batch_size or self.config.inner_batch_size
        gradients = torch.func.grad(self.test_loss)(self._own(parameters), mini_batch(batch, step, size))
        return packed_step(parameters, gradients, self.step_size(step))

    def _own(self, state: Parameters) -> Parameters:
        return {name: state[name] for name in self.parameters}


def mini_batch(batch: ExampleBatch, number: int, size: int) -> ExampleBatch:
    """Mini-batch `number`, from 0, of ONE task's examples. After the last example, the first ones follow again."""
    count = len(batch.targets)
    places = (torch.arange(min(size, count), device=batch.targets.device) + number * size) % count
    return ExampleBatch(*(part[places] for part in batch))
