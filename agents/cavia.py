"""CAVIA: meta-training learns the network, and adaptation changes only a context vector among its inputs.

Luisa Zintgraf, Kyriacos Shiarlis, Vitaly Kurin, Katja Hofmann, Shimon Whiteson: Fast Context Adaptation via
Meta-Learning. ICML 2019, arXiv:1810.03642. Every task starts with a context of zeros. An inner step changes only the
context. The meta-gradient flows through the context into the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from metarl.agents.maml import MAML, MAMLConfig
from metarl.core.bounds import AtLeast
from metarl.gradients.adaptation import Parameters, StepSize
from metarl.networks.policies import Distribution


@dataclass(frozen=True)
class CAVIAConfig(MAMLConfig):
    """Settings of CAVIA: those of MAML and the size of the context."""

    context_size: Annotated[int, AtLeast(1)] = 5
    """Numbers in the context vector."""


class CAVIA(MAML):
    """MAML that adapts an input of the policy. Its adapted state holds the shared weights and a context per task."""

    Config = CAVIAConfig
    config: CAVIAConfig

    @property
    def _num_extra_inputs(self) -> int:
        return self.config.context_size

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Parameters:
        state = super().begin(num_tasks, parameters=parameters)
        some = next(iter(state.values()))
        return {**state, "context": some.new_zeros(num_tasks, self.config.context_size)}

    def step_size(self, step: int) -> StepSize:
        size = super().step_size(step)
        assert isinstance(size, float)
        return {"context": size}

    def distribution(self, parameters: Parameters, observations: Tensor) -> Distribution:
        return super().distribution(parameters, _with_context(observations, parameters["context"]))

    def policy(self, state: Parameters, task: int) -> nn.Module:
        return _AdaptedPolicy(super().policy(state, task), state["context"][task])


class _AdaptedPolicy(nn.Module):
    """A policy with the context it adapted to."""

    context: Tensor

    def __init__(self, policy: nn.Module, context: Tensor) -> None:
        super().__init__()
        self.policy = policy
        self.register_buffer("context", context.detach().cpu().clone())

    def forward(self, observations: Tensor) -> Distribution:
        distribution: Distribution = self.policy(_with_context(observations, self.context))
        return distribution


def _with_context(observations: Tensor, context: Tensor) -> Tensor:
    """Appends [context_size] to observations [..., observation_size], or [N, context_size] to [N, B, ...]."""
    context = context if context.dim() == 1 else context.unsqueeze(1)
    return torch.cat([observations, context.expand(*observations.shape[:-1], -1)], dim=-1)
