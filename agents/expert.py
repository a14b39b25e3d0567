"""A policy trained from scratch on every test task by itself: what fresh training reaches, and after how much of it.

John Schulman, Filip Wolski, Prafulla Dhariwal, Alec Radford, Oleg Klimov: Proximal Policy Optimization Algorithms.
2017, arXiv:1707.06347. Meta-training does nothing; every adaptation step is one iteration of PPO on fresh trajectories,
so that its curve over some hundred steps stands in the same axes as those of agents that need one.

Differs from the paper: full batches, a linear baseline that is fitted to every collection, Adam without momentum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.agents.random_init import RandomInit, RandomInitConfig
from metarl.core.errors import require
from metarl.gradients.adam import no_moments, packed, packed_step
from metarl.gradients.adaptation import Parameters
from metarl.gradients.lifting import over_tasks
from metarl.rl.policy_gradient import PolicyBatch, clipped_surrogate


@dataclass(frozen=True)
class ExpertConfig(RandomInitConfig):
    """Settings of the policy and of PPO."""

    inner_lr: float = 3e-3
    """Step size of Adam."""
    later_step_scale: float = 1.0
    """Factor on inner_lr after the first iteration."""
    gae_lambda: float = 0.97
    """Generalised advantage estimation, in [0, 1]."""
    num_epochs: int = 10
    """Adam steps on each collection, >= 1."""
    clip_range: float = 0.2
    """PPO's bound on how far the ratio of probabilities counts, > 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_epochs >= 1, "agent.num_epochs", self.num_epochs, "an integer >= 1")
        require(0.0 < self.clip_range < math.inf, "agent.clip_range", self.clip_range, "a positive number")


class Expert(RandomInit):
    """PPO from scratch on every task by itself.

    Its adapted state holds each task's policy parameters and, beside them, its Adam's.
    """

    Config = ExpertConfig
    config: ExpertConfig

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Parameters:
        source = self._parameters if parameters is None else parameters
        return super().begin(num_tasks, parameters={**source, **packed(no_moments(source, momentum=False))})

    def adapt(self, state: Parameters, support: PolicyBatch, *, step: int, differentiable: bool = False) -> Parameters:
        """One iteration of PPO, of which no derivative can be taken."""

        def one_task(state: Parameters, batch: PolicyBatch) -> Parameters:
            parameters = {name: state[name] for name in self._policy_names}
            return packed_step(state, torch.func.grad(self.inner_loss)(parameters, batch), self.step_size(step))

        with torch.no_grad():
            for _ in range(self.config.num_epochs):
                state = over_tasks(one_task, state, support, chunk_size=self.chunk_size(support.num_steps))
        return state

    def inner_loss(self, parameters: Parameters, batch: PolicyBatch) -> Tensor:
        """For ONE task: minus PPO's clipped surrogate."""
        log_probs = self.distribution(parameters, batch.observations).log_prob(batch.actions)
        return -clipped_surrogate((log_probs - batch.log_probs).exp(), batch, self.config.clip_range)
