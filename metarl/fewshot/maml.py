"""MAML for examples: initial weights from which a few gradient steps on the support learn a task.

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
ICML 2017, arXiv:1703.03400. The inner step is that of the RL agents (`metarl.gradients.adaptation.gradient_step`) on a
supervised loss. The meta-step is Adam on the mean query loss, through all inner steps.

Differs from the authors' code:
- The last layer starts Xavier-uniform, theirs from N(0, 1).
- Convolutions with stride 2 pad both sides of an image; TensorFlow pads one.
- Batch norms have a scale and a shift, and inner steps change both. Theirs have only a shift, which stays as it is.
- The loss is the mean over examples. Theirs is the sum divided by the shots, so their inner step size of 0.4 in N ways
  is 0.4 N here.
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
    """Gradient steps on the support, from meta-learned weights."""

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
