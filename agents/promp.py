"""Proximal meta-policy search.

Jonas Rothfuss, Dennis Lee, Ignasi Clavera, Tamim Asfour, Pieter Abbeel: ProMP: Proximal Meta-Policy Search. ICLR 2019,
arXiv:1810.06784. The inner loss weights advantages with the likelihood ratio to the policy that acted. So the
meta-gradient also credits the policy before adaptation. The outer step is that of PPO, through the inner loop.

Differs from the paper: every collection holds whole trajectories, the same number for every task. As in the authors'
experiments, the weight of the inner KL is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Self

import torch
from torch import Tensor

from metarl.core.bounds import AtLeast, Positive
from metarl.core.data import Episodes
from metarl.core.learner import Spaces
from metarl.core.trees import to_device, tree_map
from metarl.gradients.adam import Moments, adam_step, no_moments
from metarl.gradients.adaptation import Parameters, gradient_step
from metarl.gradients.lifting import over_tasks
from metarl.gradients.vectors import flatten
from metarl.networks.policies import Activation, Distribution, action_std
from metarl.rl.policy_gradient import (
    AdaptivePolicy,
    PolicyBatch,
    PolicyConfig,
    clipped_surrogate,
    kl_from,
    live_mean,
    surrogate,
)


@dataclass(frozen=True)
class ProMPConfig(PolicyConfig):
    """Settings of ProMP; the defaults are the authors'."""

    outer_lr: Annotated[float, Positive] = 1e-3
    """Adam's step size in the outer loop."""
    num_epochs: Annotated[int, AtLeast(1)] = 5
    """Outer steps per meta-batch, each on all of its data."""
    clip_range: Annotated[float, Positive] = 0.3
    """PPO's bound on the change of the adapted policy's likelihood ratio."""
    kl_coefficient: Annotated[float, AtLeast(0)] = 5e-4
    """Weight of the KL from the policies that collected the support; larger: the policy before adaptation changes
    less."""
    hidden_sizes: Annotated[tuple[int, ...], AtLeast(1)] = (64, 64)
    activation: Activation = "tanh"


class Outcome(NamedTuple):
    """The outer objective of a task and its parts: scalars, or [num_tasks].

    Attributes:
        loss: to be minimised.
        inner_kl: KL from the policies that collected the support, mean over inner steps.
        approx_kl: estimate of the KL from the policy that collected the query.
        clip_fraction: share of the query's steps whose ratio lies outside the clip range.
    """

    loss: Tensor
    inner_kl: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


class ProMP(AdaptivePolicy):
    """Proximal meta-policy search: PPO through a likelihood-ratio inner loop."""

    Config = ProMPConfig
    config: ProMPConfig

    def __init__(self, config: ProMPConfig, spaces: Spaces, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        self._moments = no_moments(self._parameters)

    def to(self, device: torch.device | str) -> Self:
        self._moments = to_device(self._moments, device)
        return super().to(device)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "adam": self._moments._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        moments = Moments(**state["adam"])
        super().load_state_dict(state)
        self._moments = tree_map(lambda value: value.to(self.device, copy=True), moments)

    def inner_loss(self, parameters: Parameters, batch: PolicyBatch) -> Tensor:
        """For ONE task: -mean over live steps of pi(a|s) / pi_behaviour(a|s) A."""
        return -surrogate(self.distribution(parameters, batch.observations), batch)

    def meta_update(self, episodes: Episodes[Parameters, PolicyBatch]) -> dict[str, float]:
        """`num_epochs` Adam steps; each adapts the present meta-parameters to the stored support again."""
        support, query = episodes.support, episodes.query
        behaviour = self.behaviour(support)
        chunk_size = self.chunk_size(max(batch.num_steps for batch in (*support, query)))
        differentiate = torch.func.grad(self.outer_loss, has_aux=True)
        for _ in range(self.config.num_epochs):
            state = self.begin(len(episodes.tasks))
            per_task, outcome = over_tasks(differentiate, state, support, behaviour, query, chunk_size=chunk_size)
            gradients = {name: value.mean(0) for name, value in per_task.items()}
            stepped, self._moments = adam_step(self._parameters, gradients, self._moments, self.config.outer_lr)
            self._parameters = stepped
        self.see(episodes)
        metrics = {name: float(value.mean()) for name, value in outcome._asdict().items()}
        return {**metrics, "gradient_norm": float(flatten(gradients).norm()), **action_std(self._parameters)}

    def outer_loss(
        self,
        parameters: Parameters,
        support: tuple[PolicyBatch, ...],
        behaviour: tuple[Distribution, ...],
        query: PolicyBatch,
    ) -> tuple[Tensor, Outcome]:
        """The outer loss of ONE task, as a function of the meta-parameters.

        Args:
            parameters: the meta-parameters.
            support: one batch per inner step.
            behaviour: the action distributions that collected each batch, as constants.
            query: collected by the policy adapted to `support` when the meta-batch began.

        Returns:
            The loss, and the loss with its parts.
        """
        kls = []
        for step, (batch, before) in enumerate(zip(support, behaviour, strict=True)):
            kls.append(kl_from(self.distribution(parameters, batch.observations), (batch, before)))
            parameters = gradient_step(self.inner_loss, parameters, batch, self.step_size(step))
        log_ratio = self.distribution(parameters, query.observations).log_prob(query.actions) - query.log_probs
        inner_kl = torch.stack(kls).mean()
        loss = self.config.kl_coefficient * inner_kl - clipped_surrogate(log_ratio.exp(), query, self.config.clip_range)
        outside = ((log_ratio.exp() - 1.0).abs() > self.config.clip_range).to(log_ratio.dtype)
        approx_kl = live_mean(log_ratio.exp() - 1.0 - log_ratio, query.mask)
        return loss, Outcome(loss, inner_kl, approx_kl, live_mean(outside, query.mask))

    def behaviour(self, support: tuple[PolicyBatch, ...]) -> tuple[Distribution, ...]:
        """The distributions that collected each support batch, task axis leading."""
        path = self.adaptation_path(self.begin(len(support[0].mask)), support[:-1])
        return tuple(
            over_tasks(self.distribution, state, batch.observations, chunk_size=self.chunk_size(batch.num_steps))
            for state, batch in zip(path, support, strict=True)
        )
