"""ANIL: MAML that adapts only the last layer.

Aniruddh Raghu, Maithra Raghu, Samy Bengio, Oriol Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the
Effectiveness of MAML. ICLR 2020, arXiv:1909.09157. The meta-step still learns all parameters, through the adaptation of
the last layer. An inner step needs no gradient of the other layers.

Differs from the paper: the standard deviation of continuous actions, which belongs to no layer, adapts as well.
"""

from __future__ import annotations

from metarl.agents.maml import MAML
from metarl.gradients.adaptation import StepSize


class ANIL(MAML):
    """MAML whose features, all layers but the last, do not adapt."""

    def step_size(self, step: int) -> StepSize:
        size = super().step_size(step)
        assert isinstance(size, float)
        last = f".layers.{len(self.config.hidden_sizes)}."
        return {name: size for name in self._policy_names if name == "log_std" or last in name}
