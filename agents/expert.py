"""PPO from scratch on each test task: the score of training without meta-learning, and the experience it needs.

John Schulman, Filip Wolski, Prafulla Dhariwal, Alec Radford, Oleg Klimov: Proximal Policy Optimization Algorithms.
2017, arXiv:1707.06347. Meta-training does nothing. Every adaptation step is one iteration of PPO on fresh trajectories.
Its curve over some hundred steps has the same axes as the curves of the other agents.

Differs from the paper: full batches, a linear baseline that is fitted to every collection, Adam without momentum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from metarl.agents.random_init import RandomInit, RandomInitConfig
from metarl.core.bounds import AtLeast, Between, Positive
from metarl.gradients.adam import no_moments, packed, packed_step
from metarl.gradients.adaptation import Parameters
from metarl.gradients.lifting import over_tasks
from metarl.rl.policy_gradient import PolicyBatch, clipped_surrogate


@dataclass(frozen=True)
class ExpertConfig(RandomInitConfig):
    """Settings of the policy and of PPO."""

    inner_lr: Annotated[float, Positive] = 3e-3
    """Step size of Adam."""
    later_step_scale: Annotated[float, Positive] = 1.0
    """Factor on inner_lr after the first iteration."""
    gae_lambda: Annotated[float, Between(0, 1)] = 0.97
    """Generalised advantage estimation."""
    num_epochs: Annotated[int, AtLeast(1)] = 10
    """Adam steps on each collection."""
    clip_range: Annotated[float, Positive] = 0.2
    """PPO's bound on the change of a probability ratio."""


class Expert(RandomInit):
    """PPO from scratch on each task.

    Its adapted state holds the policy parameters of each task and the state of each task's Adam.
    """

    Config = ExpertConfig
    config: ExpertConfig

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Parameters:
        source = self._parameters if parameters is None else parameters
        return super().begin(num_tasks, parameters={**source, **packed(no_moments(source, momentum=False))})

    def adapt(self, state: Parameters, support: PolicyBatch, *, step: int, differentiable: bool = False) -> Parameters:
        """One iteration of PPO. It cannot be differentiated."""
        lr = self.step_size(step)
        assert isinstance(lr, float)

        def one_task(state: Parameters, batch: PolicyBatch) -> Parameters:
            parameters = {name: state[name] for name in self._policy_names}
            return packed_step(state, torch.func.grad(self.inner_loss)(parameters, batch), lr)

        with torch.no_grad():
            for _ in range(self.config.num_epochs):
                state = over_tasks(one_task, state, support, chunk_size=self.chunk_size(support.num_steps))
        return state

    def inner_loss(self, parameters: Parameters, batch: PolicyBatch) -> Tensor:
        """For ONE task: minus PPO's clipped surrogate."""
        log_probs = self.distribution(parameters, batch.observations).log_prob(batch.actions)
        return -clipped_surrogate((log_probs - batch.log_probs).exp(), batch, self.config.clip_range)
