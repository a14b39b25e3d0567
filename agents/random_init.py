"""Gradient steps from untrained weights: what meta-learned initial weights must beat.

The baseline "random" of Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of
Deep Networks. ICML 2017, arXiv:1703.03400, section 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from metarl.core.data import Episodes
from metarl.gradients.adaptation import Parameters
from metarl.rl.policy_gradient import AdaptivePolicy, BasePolicyConfig, PolicyBatch


@dataclass(frozen=True)
class RandomInitConfig(BasePolicyConfig):
    """Settings of the policy and its test-time steps."""


class RandomInit(AdaptivePolicy):
    """Untrained weights that adapt by MAML's gradient steps."""

    Config: type[RandomInitConfig] = RandomInitConfig

    def meta_update(self, episodes: Episodes[Parameters, PolicyBatch]) -> dict[str, float]:
        """Learns only the statistics of the observations, if they are normalised."""
        self.see(episodes)
        return {}
