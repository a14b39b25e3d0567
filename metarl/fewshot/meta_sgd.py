"""Meta-SGD for examples: MAML with a learned step size for every weight.

Zhenguo Li, Fengwei Zhou, Fei Chen, Hang Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. 2017,
arXiv:1707.09835. The inner step is theta' = theta - alpha * gradient, elementwise. Theta and alpha are meta-learned
together. As in the paper, alpha has no bounds: an element may become negative, and the inner step then ascends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from metarl.core.bounds import Finite, Positive
from metarl.core.data import Episodes
from metarl.core.errors import require
from metarl.fewshot.base.gradient import Adapted
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.gradients.adaptation import LEARNED_STEP_SIZE


@dataclass(frozen=True)
class MetaSGDConfig(MAMLConfig):
    """Settings of Meta-SGD."""

    inner_lr: Annotated[float, Positive] = 1.0
    """Factor on all learned step sizes."""
    initial_step_sizes: Annotated[tuple[float, float], Finite] = (0.005, 0.1)
    """Step sizes start uniformly distributed between these two numbers, with one draw for each weight tensor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.initial_step_sizes
        allowed = "two finite numbers, the first at most the second"
        require(low <= high, "agent.initial_step_sizes", (low, high), allowed)


class MetaSGD(MAML):
    """MAML that also learns its step sizes."""

    Config = MetaSGDConfig
    config: MetaSGDConfig

    def _add_networks(self, generator: torch.Generator) -> None:
        super()._add_networks(generator)
        low, high = self.config.initial_step_sizes
        for name, value in list(self.networks.parameters.items()):
            size = low + (high - low) * torch.rand((), generator=generator)
            self.networks.parameters[LEARNED_STEP_SIZE + name] = torch.ones_like(value) * size

    def meta_update(self, episodes: Episodes[Adapted, ExampleBatch]) -> dict[str, float]:
        metrics = super().meta_update(episodes)
        learned = [value.flatten() for name, value in self.parameters.items() if name.startswith(LEARNED_STEP_SIZE)]
        sizes = torch.cat(learned)
        figures = {"mean": sizes.mean(), "std": sizes.std(), "min": sizes.min(), "max": sizes.max()}
        return metrics | {f"step_size_{name}": float(value) for name, value in figures.items()}
