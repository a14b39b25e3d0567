"""One policy for all tasks that never adapts: the lower reference for adaptation.

It is the best policy that cannot find out which task it has. Training is that of `metarl.agents.pretrained`.
"""

from __future__ import annotations

from metarl.agents.pretrained import Pretrained
from metarl.core.learner import Traits
from metarl.gradients.adaptation import Parameters
from metarl.rl.policy_gradient import PolicyBatch


class TaskBlind(Pretrained):
    """One policy for all tasks, trained jointly, that does not change at test time; its adaptation curve is flat."""

    traits = Traits(unit="gradient steps")

    def adapt(self, state: Parameters, support: PolicyBatch, *, step: int, differentiable: bool = False) -> Parameters:
        return state
