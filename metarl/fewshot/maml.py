"""MAML for examples: weights from which a few gradient steps on the support lead far.

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
ICML 2017, arXiv:1703.03400. The inner step is that of the RL agents (`metarl.gradients.adaptation.gradient_step`) on a
supervised loss; the meta-step is Adam on the mean query loss, through all inner steps.

Differs from the authors' code: the last layer starts Xavier-uniform instead of from N(0, 1); stride 2 pads both sides
of an image, TensorFlow's one; batch norms have a scale, and it and the shift are adapted with all weights, where theirs
have a shift alone that no inner step changes; the loss is the mean over examples, theirs the sum divided by the shots,
so that their inner step size of 0.4 in N ways is 0.4 N here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from metarl.fewshot.base.gradient import GradientConfig, GradientLearner
from metarl.fewshot.base.learner import ExampleBatch, Outcome
from metarl.gradients.adaptation import Parameters, gradient_step


@dataclass(frozen=True)
class MAMLConfig(GradientConfig):
    """Settings of MAML."""


class MAML(GradientLearner):
    """Gradient steps on the support, from weights that were learned for it."""

    Config = MAMLConfig
    traits = replace(
        GradientLearner.traits,
        defaults={"trainer": {"meta_batch_size": 32}, "evaluation": {"num_adaptation_steps": 3}},
    )
    second_order = True

    def episode_loss(
        self, parameters: Parameters, support: tuple[ExampleBatch, ...], query: ExampleBatch
    ) -> tuple[Tensor, Outcome]:
        for step, batch in enumerate(support):
            size = self.step_size(step)
            parameters = gradient_step(self.inner_loss, parameters, batch, size, first_order=not self.second_order)
        return self.query_outcome(parameters, support[-1], query)
