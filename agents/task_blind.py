"""One policy for all tasks that never adapts: the floor that adaptation is measured from.

The best that can be done without learning which task it is. Trained as `metarl.agents.pretrained`.
"""

from __future__ import annotations

from metarl.agents.pretrained import Pretrained
from metarl.core.learner import Traits
from metarl.gradients.adaptation import Parameters
from metarl.rl.policy_gradient import PolicyBatch


class TaskBlind(Pretrained):
    """One policy for all tasks, trained jointly and left as it is; its adaptation curve is flat."""

    traits = Traits(unit="gradient steps")

    def adapt(self, state: Parameters, support: PolicyBatch, *, step: int, differentiable: bool = False) -> Parameters:
        return state
