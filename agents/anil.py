"""ANIL: MAML that adapts the last layer alone.

Aniruddh Raghu, Maithra Raghu, Samy Bengio, Oriol Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the
Effectiveness of MAML. ICLR 2020, arXiv:1909.09157. The meta-step still learns all parameters, through the adaptation of
the last layer; an inner step needs no gradient of the layers below.

Differs from the paper: the standard deviation of continuous actions belongs to no layer; it adapts with the last one.
"""

from __future__ import annotations

from metarl.agents.maml import MAML
from metarl.gradients.adaptation import StepSize


class ANIL(MAML):
    """MAML whose features stay as they are while it adapts."""

    def step_size(self, step: int) -> StepSize:
        size = super().step_size(step)
        assert isinstance(size, float)
        last = f".layers.{len(self.config.hidden_sizes)}."
        return {name: size for name in self._policy_names if name == "log_std" or last in name}
