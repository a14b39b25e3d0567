"""Reptile with policy gradients, and its control.

Alex Nichol, Joshua Achiam, John Schulman: On First-Order Meta-Learning Algorithms. 2018, arXiv:1803.02999. Each task
trains the policy for a few updates, each on fresh trajectories. Then the meta-parameters move towards the mean of the
trained parameters.

Differs from the paper: the paper's tasks are supervised. Here the inner loss is REINFORCE with a linear feature
baseline, as in MAML. The tasks of a meta-batch train side by side; in the authors' code they train one after another.
There, each task starts with Adam's second moments of the task before. Here, it starts with their mean over the tasks
of the last meta-batch.

The control `shuffle_tasks` gives every inner update trajectories of another task. Optimiser, number of steps and amount
of data stay the same, but there is no sequence of updates on one task to learn from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor

from metarl.core.bounds import AtLeast, Positive
from metarl.core.config import TrainerConfig
from metarl.core.data import Episodes
from metarl.core.errors import require
from metarl.core.learner import Spaces, loaded
from metarl.core.trees import to_device
from metarl.gradients.adam import no_moments, packed, packed_mean, packed_step
from metarl.gradients.adaptation import Parameters, gradient_step
from metarl.gradients.lifting import over_tasks
from metarl.gradients.vectors import flatten
from metarl.networks.policies import action_std
from metarl.rl.policy_gradient import AdaptivePolicy, BasePolicyConfig, PolicyBatch
from metarl.rl.schedule import require_within_schedule, schedule_left


@dataclass(frozen=True)
class ReptileConfig(BasePolicyConfig):
    """Settings of Reptile."""

    inner_updates: Annotated[int, AtLeast(1)] = 5
    """Updates on each task in meta-training, the last one on the query. With 1 update of plain gradient descent, this
    is joint training, which does not learn to adapt."""
    inner_lr: Annotated[float, Positive] = 0.01
    """Step size of the inner optimiser."""
    inner_optimizer: Literal["adam", "sgd"] = "adam"
    """Adam without momentum (its beta1 is 0), or plain gradient descent."""
    reset_moments: bool = False
    """Start every task with Adam's second moments at zero. If false: at their mean over the tasks of the last
    meta-batch."""
    later_step_scale: Annotated[float, Positive] = 1.0
    """Factor on inner_lr for test-time updates beyond those of meta-training."""
    meta_step_size: Annotated[float, Positive] = 1.0
    """Step of the meta-parameters at the first iteration; 1 goes all the way to the mean of the trained parameters."""
    schedule_iterations: Annotated[int | None, AtLeast(1)] = None
    """Iterations in which meta_step_size falls linearly to zero, >= `trainer.iterations`. None = it does not fall."""
    shuffle_tasks: bool = False
    """The control: every inner update of meta-training gets trajectories of another task of the meta-batch."""

    @property
    def num_adaptation_steps(self) -> int:
        """The inner updates on support; one more is on the query."""
        return self.inner_updates - 1

    def check_trainer(self, trainer: TrainerConfig) -> None:
        """Refuses a run longer than the schedule, and a meta-batch that is too small for `shuffle_tasks`.

        Raises:
            InputError: with the setting to change.
        """
        require_within_schedule(self.schedule_iterations, trainer)
        batch = trainer.meta_batch_size
        allowed = f"at least agent.inner_updates = {self.inner_updates} with agent.shuffle_tasks"
        require(not self.shuffle_tasks or batch >= self.inner_updates, "trainer.meta_batch_size", batch, allowed)


class Reptile(AdaptivePolicy):
    """Reptile: a few policy-gradient updates per task, then a move towards the trained parameters.

    The adapted state holds the policy parameters of each task and the state of its Adam, `num_steps` and
    `second.<name>`.
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
        """The step size of update `step`; the update on the query belongs to meta-training, too."""
        later = step >= self.config.inner_updates
        return self.config.inner_lr * (self.config.later_step_scale if later else 1.0)

    def meta_update(self, episodes: Episodes[Parameters, PolicyBatch]) -> dict[str, float]:
        """The last inner update, which is on the query; then the move towards the mean of the tasks' parameters."""
        trained = self.adapt(episodes.state, episodes.query, step=self.num_adaptation_steps)
        meta_step_size = self.meta_step_size()
        moves = {name: meta_step_size * (trained[name].mean(0) - old) for name, old in self._parameters.items()}
        self._parameters = {name: old + moves[name] for name, old in self._parameters.items()}
        self._num_updates += 1
        if not self.config.reset_moments:
            self._carried = packed_mean(trained, self._policy_names)
        self.see(episodes)
        move_norm = float(flatten(moves).norm())
        return {"meta_step_size": meta_step_size, "move_norm": move_norm, **action_std(self._parameters)}

    def meta_step_size(self) -> float:
        """The step size of the next meta-update."""
        return self.config.meta_step_size * schedule_left(self.config.schedule_iterations, self._num_updates)
