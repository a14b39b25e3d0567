"""Reptile with policy gradients, and its control.

Alex Nichol, Joshua Achiam, John Schulman: On First-Order Meta-Learning Algorithms. 2018, arXiv:1803.02999. Each task
trains the policy for a few updates, each on fresh trajectories; the meta-parameters then move towards the mean of the
trained ones.

Differs from the paper: its tasks are supervised; the inner loss here is REINFORCE with a linear feature baseline, as in
MAML. The tasks of a meta-batch train side by side, where the authors' code trains one after another: the second moments
of Adam, which that code carries from task to task, are carried here as the mean over the tasks.

The control, `shuffle_tasks`, gives every inner update trajectories of another task: the same optimiser, steps and
amount of data, but nothing that a sequence of updates on one task could teach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor

from metarl.core.config import TrainerConfig
from metarl.core.data import Episodes
from metarl.core.errors import require
from metarl.core.learner import Spaces, loaded
from metarl.core.trees import to_device
from metarl.gradients.adam import no_moments, packed, packed_mean, packed_step
from metarl.gradients.adaptation import Parameters, gradient_step
from metarl.gradients.lifting import over_tasks
from metarl.rl.policy_gradient import AdaptivePolicy, PolicyBatch, PolicyConfig, flatten


@dataclass(frozen=True)
class ReptileConfig(PolicyConfig):
    """Settings of Reptile."""

    inner_updates: int = 5
    """Updates on each task in meta-training, the last of them on the query: with 1, plain gradient descent is joint
    training, and nothing is learned about adapting."""
    num_adaptation_steps: int = field(default=4, init=False)
    inner_lr: float = 0.01
    """Step size of the inner optimiser."""
    inner_optimizer: Literal["adam", "sgd"] = "adam"
    """Adam without momentum (its beta1 is 0), or plain gradient descent."""
    reset_moments: bool = False
    """Start every task with Adam's second moments at zero, instead of the mean of those the last tasks ended with."""
    later_step_scale: float = 1.0
    """Factor on inner_lr for test-time updates beyond those meta-trained."""
    meta_step_size: float = 1.0
    """Share of the way to the mean of the trained parameters that the meta-parameters go, at the first iteration."""
    schedule_iterations: int | None = None
    """Iterations in which meta_step_size falls linearly to zero, at least those of the run; None = it does not fall."""
    shuffle_tasks: bool = False
    """The control: every inner update of meta-training gets trajectories of another task of the meta-batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.inner_updates >= 1, "agent.inner_updates", self.inner_updates, "an integer >= 1")
        optimizers = ("adam", "sgd")
        require(self.inner_optimizer in optimizers, "agent.inner_optimizer", self.inner_optimizer, "'adam' or 'sgd'")
        size, schedule = self.meta_step_size, self.schedule_iterations
        require(0.0 < size < math.inf, "agent.meta_step_size", size, "a positive number")
        require(schedule is None or schedule >= 1, "agent.schedule_iterations", schedule, "an integer >= 1")
        object.__setattr__(self, "num_adaptation_steps", self.inner_updates - 1)

    def check_trainer(self, trainer: TrainerConfig) -> None:
        """Refuses a run in which iterations would learn nothing, or tasks come round twice.

        Raises:
            InputError: with the setting to change.
        """
        schedule, batch = self.schedule_iterations, trainer.meta_batch_size
        allowed = f"at most agent.schedule_iterations = {schedule}: beyond it, nothing is learned"
        require(schedule is None or trainer.iterations <= schedule, "trainer.iterations", trainer.iterations, allowed)
        allowed = f"at least agent.inner_updates = {self.inner_updates} with agent.shuffle_tasks"
        require(not self.shuffle_tasks or batch >= self.inner_updates, "trainer.meta_batch_size", batch, allowed)


class Reptile(AdaptivePolicy):
    """Reptile: a few policy-gradient updates per task, then a move towards where they led.

    The adapted state holds each task's policy parameters and, beside them, its Adam's: `num_steps` and `second.<name>`.
    """

    Config = ReptileConfig
    config: ReptileConfig

    def __init__(self, config: ReptileConfig, spaces: Spaces, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        self._carried = packed(no_moments(self._parameters, momentum=False))
        self._num_updates = 0

    def to(self, device: torch.device | str) -> Self:
        self._carried = to_device(self._carried, device)
        return super().to(device)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "carried": dict(self._carried), "num_updates": self._num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        carried = loaded(self._carried, state["carried"], what="carried moments")
        super().load_state_dict(state)
        self._carried, self._num_updates = carried, int(state["num_updates"])

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Parameters:
        source = self._parameters if parameters is None else parameters
        return super().begin(num_tasks, parameters={**source, **self._carried})

    def adapt(self, state: Parameters, support: PolicyBatch, *, step: int, differentiable: bool = False) -> Parameters:
        def one_task(state: Parameters, batch: PolicyBatch) -> Parameters:
            return self.inner_update(state, batch, self.step_size(step))

        with torch.set_grad_enabled(differentiable):
            adapted: Parameters = over_tasks(one_task, state, support, chunk_size=self.chunk_size(support.num_steps))
        return adapted

    def inner_update(self, state: Parameters, batch: PolicyBatch, lr: float) -> Parameters:
        """The state of ONE task after one more update."""
        parameters = {name: state[name] for name in self._policy_names}
        if self.config.inner_optimizer == "sgd":
            return {**state, **gradient_step(self.inner_loss, parameters, batch, lr)}
        return packed_step(state, torch.func.grad(self.inner_loss)(parameters, batch), lr)

    def step_size(self, step: int) -> float:
        """Of update `step`; the query's is one of meta-training's."""
        later = step >= self.config.inner_updates
        return self.config.inner_lr * (self.config.later_step_scale if later else 1.0)

    def meta_update(self, episodes: Episodes[Parameters, PolicyBatch]) -> dict[str, float]:
        """The last inner update, on the query; then the move towards the mean of the tasks' parameters."""
        trained = self.adapt(episodes.state, episodes.query, step=self.num_adaptation_steps)
        meta_step_size = self.meta_step_size()
        moves = {name: meta_step_size * (trained[name].mean(0) - old) for name, old in self._parameters.items()}
        self._parameters = {name: old + moves[name] for name, old in self._parameters.items()}
        self._num_updates += 1
        if not self.config.reset_moments:
            self._carried = packed_mean(trained, self._policy_names)
        metrics = {"meta_step_size": meta_step_size, "move_norm": float(flatten(moves).norm())}
        if "log_std" in self._parameters:
            metrics["std"] = float(self._parameters["log_std"].exp().mean())
        self.see(episodes)
        return metrics

    def meta_step_size(self) -> float:
        """Of the next meta-update."""
        schedule = self.config.schedule_iterations
        left = 1.0 if schedule is None else max(0.0, 1.0 - self._num_updates / schedule)
        return self.config.meta_step_size * left
