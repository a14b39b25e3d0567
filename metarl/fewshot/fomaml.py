"""First-order MAML for examples: the meta-gradient treats inner gradients as constants.

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
ICML 2017, arXiv:1703.03400, section 5.2. The meta-gradient is the query's gradient at the adapted weights.
"""

from __future__ import annotations

from metarl.fewshot.maml import MAML


class FOMAML(MAML):
    """MAML without second derivatives."""

    second_order = False
