"""Joint training over tasks, then gradient steps: what MAML must beat.

The baseline "pretrained" of Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast
Adaptation of Deep Networks. ICML 2017, arXiv:1703.03400, section 5.3: one policy is trained on all tasks at once by
TRPO, without adapting, and fine-tuned at test time. It is MAML with no inner step in training: same policy, same outer
step, same test-time steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from metarl.agents.maml import MAML, MAMLConfig
from metarl.gradients.adaptation import StepSize


@dataclass(frozen=True)
class PretrainedConfig(MAMLConfig):
    """Settings of joint training; `inner_lr` and `later_step_scale` are the test-time steps'."""

    num_adaptation_steps: int = field(default=1, init=False)
    estimator: Literal["log-likelihood", "likelihood-ratio", "dice"] = field(default="log-likelihood", init=False)
    exploration_term: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_adaptation_steps", 0)


class Pretrained(MAML):
    """One policy for all tasks, trained without adapting; it adapts when tested."""

    Config: type[MAMLConfig] = PretrainedConfig
    first_order = True  # there is nothing to differentiate through

    def step_size(self, step: int) -> StepSize:
        """The first test-time step is a whole one, as MAML's is."""
        return self.config.inner_lr * (self.config.later_step_scale if step >= 1 else 1.0)
