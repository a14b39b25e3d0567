"""First-order MAML: derivatives through the adaptation treat the inner gradient as a constant.

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
ICML 2017, arXiv:1703.03400, section 5.2; named in Alex Nichol, Joshua Achiam, John Schulman: On First-Order
Meta-Learning Algorithms. 2018, arXiv:1803.02999. The meta-gradient is the query's gradient at the adapted parameters,
averaged over tasks. The curvature is their Fisher matrix.

Differs from the papers: their tasks are supervised. Here it takes MAML's trust-region step. The line search adapts
every candidate again.
"""

from __future__ import annotations

from metarl.agents.maml import MAML


class FOMAML(MAML):
    """MAML without second derivatives: several times cheaper, but it neglects how a step changes the next one."""

    first_order = True
