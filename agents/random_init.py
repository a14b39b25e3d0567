"""Gradient steps from weights that were never trained: what meta-learning the initial weights must beat.

The baseline "random" of Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of
Deep Networks. ICML 2017, arXiv:1703.03400, section 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from metarl.core.data import Episodes
from metarl.gradients.adaptation import Parameters
from metarl.rl.policy_gradient import AdaptivePolicy, PolicyBatch, PolicyConfig


@dataclass(frozen=True)
class RandomInitConfig(PolicyConfig):
    """Settings of the policy and its test-time steps."""

    num_adaptation_steps: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_adaptation_steps", 0)


class RandomInit(AdaptivePolicy):
    """Untrained weights that adapt by MAML's gradient steps."""

    Config: type[RandomInitConfig] = RandomInitConfig

    def meta_update(self, episodes: Episodes[Parameters, PolicyBatch]) -> dict[str, float]:
        """Learns only the statistics of the observations, if they are normalised."""
        self.see(episodes)
        return {}

    def step_size(self, step: int) -> float:
        """The first test-time step is a whole one, as MAML's is."""
        return self.config.inner_lr * (self.config.later_step_scale if step >= 1 else 1.0)
