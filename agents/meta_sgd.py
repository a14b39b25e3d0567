"""Meta-SGD: MAML with a learned step size for every parameter.

Zhenguo Li, Fengwei Zhou, Fei Chen, Hang Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. 2017,
arXiv:1707.09835. The inner step is theta' = theta - alpha * gradient, elementwise; theta and alpha are meta-learned
together. As in the paper, alpha has no bounds: if an element becomes negative, the inner step ascends along it.

Differs from the paper: all elements of alpha start at `inner_lr` instead of random values. The meta-step is MAML's
trust-region step on (theta, alpha).
"""

from __future__ import annotations

import copy
from typing import Self

import torch

from metarl.agents.maml import MAML, MAMLConfig
from metarl.core.data import Episodes
from metarl.core.learner import Spaces
from metarl.gradients.adaptation import LEARNED_STEP_SIZE, Parameters
from metarl.rl.policy_gradient import PolicyBatch


class MetaSGD(MAML):
    """MAML that also learns its step sizes. They start at `inner_lr`; `later_step_scale` scales all of them."""

    def __init__(self, config: MAMLConfig, spaces: Spaces, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        for name in self._policy_names:
            self._parameters[LEARNED_STEP_SIZE + name] = torch.full_like(self._parameters[name], config.inner_lr)

    def step_size(self, step: int) -> float:
        """The factor on the learned step sizes."""
        return 1.0 if step < self.config.num_adaptation_steps else self.config.later_step_scale

    def with_step_scale(self, factor: float) -> Self:
        scaled = copy.copy(self)
        scaled._parameters = {
            name: factor * value if name.startswith(LEARNED_STEP_SIZE) else value
            for name, value in self._parameters.items()
        }
        return scaled

    def meta_update(self, episodes: Episodes[Parameters, PolicyBatch]) -> dict[str, float]:
        metrics = super().meta_update(episodes)
        learned = [value.flatten() for name, value in self._parameters.items() if name.startswith(LEARNED_STEP_SIZE)]
        sizes = torch.cat(learned)
        metrics |= {f"step_size_{name}": float(getattr(sizes, name)()) for name in ("mean", "std", "min", "max")}
        return metrics
