"""Policy-gradient MAML with a trust-region outer step.

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
ICML 2017, arXiv:1703.03400. Inner loop: REINFORCE with a linear feature baseline. Outer step: TRPO on the adapted
policies.

Differs from the paper:

- Hessian-vector products are exact; the authors used finite differences. They have the factored form J^T F J, with J
  the Jacobian of the adaptation and F the Fisher matrix of the adapted policy.
- Every collection holds whole trajectories, the same number for every task.
- The inner loss is the log-likelihood times the advantage, as in the authors' code. Its Hessian leaves out that the
  parameters change the sampling distribution (arXiv:1810.06784, section 4). The setting `estimator` chooses others.
- The setting `exploration_term` adds a term that MAML's meta-gradient leaves out: the parameters also decide which
  support is collected (Bradly Stadie et al.: Some Considerations on Learning to Explore via Meta-Reinforcement
  Learning. 2018, arXiv:1803.01118).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metarl.core.data import Episodes
from metarl.core.errors import require
from metarl.gradients.adaptation import Parameters
from metarl.gradients.jacobian import AdaptationJacobian, MetaJacobian
from metarl.gradients.lifting import over_tasks
from metarl.gradients.vectors import unflatten
from metarl.networks.policies import Distribution
from metarl.rl.policy_gradient import (
    PolicyBatch,
    PolicyConfig,
    dice,
    kl_from,
    log_likelihood_ratio,
    surrogate,
)
from metarl.rl.trust_region import OuterProblem, TrustRegionConfig, TrustRegionPolicy


@dataclass(frozen=True)
class MAMLConfig(TrustRegionConfig, PolicyConfig):
    """Settings of MAML; the defaults are the paper's for half-cheetah-dir."""

    estimator: Literal["log-likelihood", "likelihood-ratio", "dice"] = "log-likelihood"
    """Inner loss. All three have the same gradient; the meta-gradient also uses the Hessian. log-likelihood (the
    authors' code): biased. likelihood-ratio: biased, with low variance. dice: unbiased at gamma = 1, but noisy."""
    exploration_term: bool = False
    """Credit the actions of the support with the return after adaptation (E-MAML). Unbiased; a task's baseline is the
    mean return of the other tasks. All actions of a support share one credit: with supports of thousands of steps, its
    noise hides the rest of the meta-gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.estimator != "dice" or self.curvature_every == 1
        require(whole, "agent.curvature_every", self.curvature_every, "1 with estimator 'dice', which needs every step")


class MAML(TrustRegionPolicy):
    """The learner: gradient steps on the support, then a trust-region step on the return of the adapted policies."""

    Config = MAMLConfig
    config: MAMLConfig

    def outer_problem(self, episodes: Episodes[Parameters, PolicyBatch]) -> OuterProblem:
        return (ExploringSurrogate if self.config.exploration_term else AdaptedSurrogate)(self, episodes)

    def inner_loss(self, parameters: Parameters, batch: PolicyBatch) -> Tensor:
        """For ONE task; at the parameters that acted, its gradient is the same for all estimators."""
        if self.config.estimator == "log-likelihood":
            return super().inner_loss(parameters, batch)
        objective = surrogate if self.config.estimator == "likelihood-ratio" else dice
        return -objective(self.distribution(parameters, batch.observations), batch)


class AdaptedSurrogate:
    """The surrogate of the adapted policies, mean over the tasks of one meta-batch."""

    def __init__(self, learner: TrustRegionPolicy, episodes: Episodes[Parameters, PolicyBatch]) -> None:
        self._learner, self._support, self._query = learner, episodes.support, episodes.query
        self._num_tasks = len(episodes.tasks)
        self._states = learner.adaptation_path(self._begin(learner.parameters), self._support[:-1])
        self._outputs = learner.outputs(episodes.state, self._query)
        self._old = self._outputs.values
        stride = learner.config.curvature_every
        thinned = self._query.every(stride)
        outputs = self._outputs if stride == 1 else learner.outputs(episodes.state, thinned)
        self._fisher = outputs.gauss_newton(kl_from, (thinned, outputs.values))
        self._jacobian = self._jacobian_on(1)
        self._coarse = self._jacobian if stride == 1 else self._jacobian_on(stride)

    def value(self) -> float:
        """The mean surrogate at the present meta-parameters."""
        return float(over_tasks(surrogate, self._old, self._query).mean())

    def gradient(self) -> Tensor:
        """J^T g, mean over tasks, with g the gradient at the adapted parameters."""
        return self._jacobian.pull(self._outputs.pull(over_tasks(torch.func.grad(surrogate), self._old, self._query)))

    def product(self, vector: Tensor) -> Tensor:
        """J^T F J v, mean over tasks: the gradient of the KL is zero at the present parameters."""
        return self._coarse.pull(self._fisher(self._coarse.push(vector)))

    def evaluate(self, vector: Tensor) -> tuple[float, float]:
        """Surrogate and KL of candidate meta-parameters, adapted on the stored support."""
        state = self._begin(unflatten(vector, self._learner.parameters))
        return self._evaluate(self._learner.adaptation_path(state, self._support))

    def _evaluate(self, path: Sequence[Parameters]) -> tuple[float, float]:
        """Surrogate and KL of a candidate from its states `path`: before adaptation and after each step."""
        learner = self._learner

        def values(parameters: Parameters, data: PolicyBatch, old: Distribution) -> tuple[Tensor, Tensor]:
            new = learner.distribution(parameters, data.observations)
            return surrogate(new, data), kl_from(new, (data, old))

        with torch.no_grad():
            chunk_size = learner.chunk_size(self._query.num_steps)
            surrogates, kls = over_tasks(values, path[-1], self._query, self._old, chunk_size=chunk_size)
        return float(surrogates.mean()), float(kls.mean())

    def _begin(self, parameters: Mapping[str, Tensor]) -> Parameters:
        return self._learner.begin(self._num_tasks, parameters=parameters)

    def _jacobian_on(self, stride: int) -> MetaJacobian:
        """J, with the Hessians of the inner losses on every `stride`-th step of the support."""
        learner = self._learner
        thinned = [] if learner.first_order else [batch.every(stride) for batch in self._support]
        hessians = [learner.hessians(state, batch) for state, batch in zip(self._states, thinned, strict=False)]
        step_sizes = [learner.step_size(step) for step in range(len(thinned))]
        return MetaJacobian(AdaptationJacobian(hessians, step_sizes), learner.parameters, self._begin)


class ExploringSurrogate(AdaptedSurrogate):
    """Adds E-MAML's term: the log-likelihood ratio of the support's actions, times the credit of each task.

    The term is zero at the present meta-parameters, and its gradient is the policy gradient of the support's actions
    for the return after adaptation.
    """

    def gradient(self) -> Tensor:
        gradient = super().gradient()
        for step, (state, batch) in enumerate(zip(self._states, self._support, strict=True)):
            outputs = self._learner.outputs(state, batch)
            slopes = over_tasks(torch.func.grad(_credited), outputs.values, batch, credits_of(self._query))
            gradient = gradient + self._jacobian.first(step).pull(outputs.pull(slopes))
        return gradient

    def _evaluate(self, path: Sequence[Parameters]) -> tuple[float, float]:
        def of_task(parameters: Parameters, data: PolicyBatch, credit: Tensor) -> Tensor:
            return _credited(learner.distribution(parameters, data.observations), data, credit)

        learner, explored = self._learner, 0.0
        for state, batch in zip(path, self._support, strict=False):
            with torch.no_grad():
                chunk_size = learner.chunk_size(batch.num_steps)
                terms = over_tasks(of_task, state, batch, credits_of(self._query), chunk_size=chunk_size)
            explored += float(terms.mean())
        value, kl = super()._evaluate(path)
        return value + explored, kl


def _credited(distribution: Distribution, batch: PolicyBatch, credit: Tensor) -> Tensor:
    return credit * log_likelihood_ratio(distribution, batch)


def credits_of(query: PolicyBatch) -> Tensor:
    """[N]: each task's return minus the mean of the other tasks', in the unit of the surrogate.

    A task's support does not change the other tasks' returns, so their mean is a baseline without bias.
    """
    returns, scale = query.mean_return, query.return_scale
    others = (returns.sum() - returns) / max(1, len(returns) - 1)
    above = returns - others if len(returns) > 1 else returns
    return torch.where(scale > 0.0, above / scale, torch.zeros_like(scale))
