"""One policy that is told which task it is: the ceiling that adaptation is measured against.

The baseline "oracle" of Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of
Deep Networks. ICML 2017, arXiv:1703.03400, section 5.3. Every observation ends with the features of the task
(`EnvTaskDistribution.task_features`). A ceiling only once its learning curve is flat.
"""

from __future__ import annotations

from metarl.agents.task_blind import TaskBlind
from metarl.core.learner import Traits


class Oracle(TaskBlind):
    """One policy for all tasks with the task in its observation; it has nothing to adapt to."""

    traits = Traits(unit="gradient steps", observes_task=True)
