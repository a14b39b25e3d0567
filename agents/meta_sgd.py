"""Meta-SGD: MAML with a learned step size for every parameter.

Zhenguo Li, Fengwei Zhou, Fei Chen, Hang Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. 2017,
arXiv:1707.09835. The inner step is theta' = theta - alpha * gradient, elementwise, and theta and alpha are meta-learned
together. As in the paper nothing bounds alpha: where an element turns negative, the inner step ascends along it.

Differs from the paper: alpha starts at `inner_lr` everywhere instead of at random; the meta-step is MAML's trust-region
step on (theta, alpha), whose Fisher matrix says how far each of them moves the adapted policies.
"""

from __future__ import annotations

import copy
from typing import Self

import torch

from metarl.agents.maml import MAML
from metarl.core.data import Episodes
from metarl.core.learner import Spaces
from metarl.gradients.adaptation import LEARNED_STEP_SIZE, Parameters
from metarl.rl.policy_gradient import PolicyBatch, PolicyConfig


class MetaSGD(MAML):
    """MAML that also learns its step sizes; `inner_lr` is what they start from, `later_step_scale` scales them all."""

    def __init__(self, config: PolicyConfig, spaces: Spaces, *, generator: torch.Generator) -> None:
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
