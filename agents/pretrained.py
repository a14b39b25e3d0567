"""Joint training over tasks, then gradient steps at test time: what MAML must beat.

The baseline "pretrained" of Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast
Adaptation of Deep Networks. ICML 2017, arXiv:1703.03400, section 5.3. TRPO trains one policy on all tasks at once. The
policy adapts at test time only. This is MAML without inner steps in training. The policy, the outer step and the
test-time steps are MAML's.
"""

from __future__ import annotations

from dataclasses import dataclass

from metarl.agents.maml import AdaptedSurrogate
from metarl.core.data import Episodes
from metarl.gradients.adaptation import Parameters
from metarl.rl.policy_gradient import PolicyBatch
from metarl.rl.trust_region import OuterProblem, TrustRegionConfig, TrustRegionPolicy


@dataclass(frozen=True)
class PretrainedConfig(TrustRegionConfig):
    """Settings of joint training; `inner_lr` and `later_step_scale` belong to the test-time steps."""


class Pretrained(TrustRegionPolicy):
    """One policy for all tasks, trained without adapting; it adapts at test time."""

    Config = PretrainedConfig

    def outer_problem(self, episodes: Episodes[Parameters, PolicyBatch]) -> OuterProblem:
        """The surrogate of the policy itself: the episodes have no support."""
        return AdaptedSurrogate(self, episodes)
