"""One policy that observes which task it has: the upper reference for adaptation.

The baseline "oracle" of Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of
Deep Networks. ICML 2017, arXiv:1703.03400, section 5.3. Every observation ends with the features of the task
(`EnvTaskDistribution.task_features`). It is an upper bound only if it was trained until its learning curve is flat.
"""

from __future__ import annotations

from metarl.agents.task_blind import TaskBlind
from metarl.core.learner import Traits


class Oracle(TaskBlind):
    """One policy for all tasks with the task in its observation. It does not adapt."""

    traits = Traits(unit="gradient steps", observes_task=True)
