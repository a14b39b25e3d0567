"""Policy-gradient MAML with a trust-region outer step.

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
ICML 2017, arXiv:1703.03400. Inner loop: REINFORCE with a linear feature baseline. Outer step: TRPO on the adapted
policies.

Differs from the paper: the Hessian-vector products are exact (the authors used finite differences), in the factored
form J^T F J with J the Jacobian of the inner loop and F the Fisher matrix of the adapted policy; every collection
holds whole trajectories, the same number for every task. Like the authors' code, the inner loss is the log-likelihood
times the advantage, whose Hessian leaves out how the parameters change the sampling distribution (arXiv:1810.06784,
section 4); `estimator` chooses others. `exploration_term` adds what MAML's meta-gradient leaves out: that the
parameters also decide what support is seen (Bradly Stadie et al.: Some Considerations on Learning to Explore via
Meta-Reinforcement Learning. 2018, arXiv:1803.01118).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metarl.core.data import Episodes
from metarl.core.errors import require
from metarl.gradients.adaptation import Parameters
from metarl.gradients.curvature import AdaptationJacobian, TaskHessians, TaskOutputs
from metarl.gradients.lifting import over_tasks
from metarl.gradients.trust_region import trust_region_step
from metarl.networks.policies import Distribution
from metarl.rl.policy_gradient import (
    AdaptivePolicy,
    PolicyBatch,
    PolicyConfig,
    dice,
    flatten,
    kl_from,
    log_likelihood_ratio,
    surrogate,
    unflatten,
)


@dataclass(frozen=True)
class MAMLConfig(PolicyConfig):
    """Settings of MAML; the defaults are the paper's for half-cheetah-dir."""

    max_kl: float = 0.01
    """Trust region of the outer step: mean KL between old and new adapted policies, nats."""
    cg_iterations: int = 10
    """Conjugate-gradient iterations of the outer step."""
    cg_damping: float = 1e-5
    """Added to the curvature's diagonal."""
    max_backtracks: int = 15
    """Line-search candidates of the outer step."""
    backtrack_ratio: float = 0.8
    """Each candidate's step over the one before."""
    curvature_every: int = 1
    """Estimate the curvature on every n-th step of the data; 1 is exact. Gradients and adaptation use all data."""
    estimator: Literal["log-likelihood", "likelihood-ratio", "dice"] = "log-likelihood"
    """Inner loss. All have one gradient; the meta-gradient also uses the Hessian, for which log-likelihood (the
    authors' code) and likelihood-ratio (low variance) are biased and dice, unbiased at gamma = 1, is noisy."""
    exploration_term: bool = False
    """Credit the support's actions with the return after adaptation (E-MAML). Unbiased, with the other tasks' mean
    return as a task's baseline; but every action of a support shares one credit, and with supports of thousands of
    steps this noise drowns the rest of the meta-gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.max_kl < math.inf, "agent.max_kl", self.max_kl, "a positive number")
        for name in ("cg_iterations", "max_backtracks", "curvature_every"):
            require(getattr(self, name) >= 1, f"agent.{name}", getattr(self, name), "an integer >= 1")
        require(0.0 <= self.cg_damping < math.inf, "agent.cg_damping", self.cg_damping, "a number >= 0")
        estimators = ("log-likelihood", "likelihood-ratio", "dice")
        allowed = ", ".join(map(repr, estimators))
        require(self.estimator in estimators, "agent.estimator", self.estimator, f"one of {allowed}")
        whole = self.estimator != "dice" or self.curvature_every == 1
        require(whole, "agent.curvature_every", self.curvature_every, "1 with estimator 'dice', which needs every step")
        require(0.0 < self.backtrack_ratio < 1.0, "agent.backtrack_ratio", self.backtrack_ratio, "in (0, 1)")


class MAML(AdaptivePolicy):
    """The learner: gradient steps on the support, a trust-region step on what they lead to."""

    Config = MAMLConfig
    config: MAMLConfig

    def meta_update(self, episodes: Episodes[Parameters, PolicyBatch]) -> dict[str, float]:
        """One TRPO step on the surrogate of the adapted policies, averaged over tasks."""
        outer = OuterStep(self, episodes)
        gradient = outer.gradient()
        config = self.config
        result = trust_region_step(
            flatten(self._parameters),
            outer.value(),
            gradient,
            outer.product,
            outer.evaluate,
            max_kl=config.max_kl,
            cg_iterations=config.cg_iterations,
            cg_damping=config.cg_damping,
            max_backtracks=config.max_backtracks,
            backtrack_ratio=config.backtrack_ratio,
        )
        # Parts of one vector lie anywhere; a resumed run's parameters do not, and last bits may hang on it.
        self._parameters = {name: part.clone() for name, part in unflatten(result.vector, self._parameters).items()}
        metrics = {
            "surrogate_improvement": result.improvement,
            "approx_kl": result.kl,
            "accepted": float(result.accepted),
            "backtracks": float(result.backtracks),
            "gradient_norm": float(gradient.norm()),
        }
        if "log_std" in self._parameters:
            metrics["std"] = float(self._parameters["log_std"].exp().mean())
        self.see(episodes)
        return metrics

    def inner_loss(self, parameters: Parameters, batch: PolicyBatch) -> Tensor:
        """For ONE task; its gradient does not depend on the estimator at the parameters that acted."""
        if self.config.estimator == "log-likelihood":
            return super().inner_loss(parameters, batch)
        objective = surrogate if self.config.estimator == "likelihood-ratio" else dice
        return -objective(self.distribution(parameters, batch.observations), batch)


class OuterStep:
    """The outer problem of one meta-batch: gradient, curvature product and value of a candidate, on flat vectors."""

    def __init__(self, learner: MAML, episodes: Episodes[Parameters, PolicyBatch]) -> None:
        self._learner = learner
        self._num_tasks = len(episodes.tasks)
        self._support, self._query, self._adapted = episodes.support, episodes.query, episodes.state
        self._outputs = self._outputs_of(self._adapted, self._query)
        self._old: Distribution = self._outputs.values
        stride = learner.config.curvature_every
        self._states = self._states_before_each_step()
        self._exact = self._jacobian(1)
        self._coarse = self._exact if stride == 1 else self._jacobian(stride)
        thinned = self._query.every(stride)
        outputs = self._outputs if stride == 1 else self._outputs_of(self._adapted, thinned)
        self._fisher = outputs.gauss_newton(kl_from, (thinned, outputs.values))

    def value(self) -> float:
        """The mean objective at the present meta-parameters, where the exploration term is zero."""
        return float(over_tasks(surrogate, self._old, self._query).mean())

    def gradient(self) -> Tensor:
        """Of the mean objective with respect to the meta-parameters, through the inner loop."""
        per_task = over_tasks(torch.func.grad(surrogate), self._old, self._query)
        gradient = self._mean_over_tasks(self._exact.pull(self._outputs.pull(per_task)))
        if self._learner.config.exploration_term:
            for step, (state, batch) in enumerate(zip(self._states, self._support, strict=True)):
                cotangents = self._exploration_gradient(state, batch)
                gradient = gradient + self._mean_over_tasks(self._exact.first(step).pull(cotangents))
        return gradient

    def product(self, vector: Tensor) -> Tensor:
        """mean over tasks of J^T F J v."""
        tangents = self._learner.begin(self._num_tasks, parameters=unflatten(vector, self._learner.parameters))
        return self._mean_over_tasks(self._coarse.pull(self._fisher(self._coarse.push(tangents))))

    def evaluate(self, vector: Tensor) -> tuple[float, float]:
        """Objective and KL of candidate meta-parameters, adapted on the stored support."""
        learner = self._learner
        state = learner.begin(self._num_tasks, parameters=unflatten(vector, learner.parameters))
        explored = 0.0
        for step, batch in enumerate(self._support):
            if learner.config.exploration_term:
                explored += self._exploration_value(state, batch)
            state = learner.adapt(state, batch, step=step)

        def values(parameters: Parameters, data: PolicyBatch, old: Distribution) -> tuple[Tensor, Tensor]:
            new = learner.distribution(parameters, data.observations)
            return surrogate(new, data), kl_from(new, (data, old))

        with torch.no_grad():
            chunk_size = learner.chunk_size(self._query.num_steps)
            surrogates, kls = over_tasks(values, state, self._query, self._old, chunk_size=chunk_size)
        return float(surrogates.mean()) + explored, float(kls.mean())

    def _exploration_value(self, state: Parameters, batch: PolicyBatch) -> float:
        """What `state`, before a step, makes of the likelihood of the support of this step."""

        def of_task(parameters: Parameters, data: PolicyBatch, credit: Tensor) -> Tensor:
            return credit * log_likelihood_ratio(self._learner.distribution(parameters, data.observations), data)

        with torch.no_grad():
            chunk_size = self._learner.chunk_size(batch.num_steps)
            return float(over_tasks(of_task, state, batch, credits_of(self._query), chunk_size=chunk_size).mean())

    def _exploration_gradient(self, state: Parameters, batch: PolicyBatch) -> Parameters:
        """Of the above with respect to `state`, times the number of tasks."""

        def of_task(distribution: Distribution, data: PolicyBatch, credit: Tensor) -> Tensor:
            return credit * log_likelihood_ratio(distribution, data)

        outputs = self._outputs_of(state, batch)
        return outputs.pull(over_tasks(torch.func.grad(of_task), outputs.values, batch, credits_of(self._query)))

    def _outputs_of(self, state: Parameters, data: PolicyBatch) -> TaskOutputs:
        learner = self._learner
        chunk_size = learner.chunk_size(data.num_steps)
        return TaskOutputs(learner.distribution, state, data.observations, chunk_size=chunk_size)

    def _states_before_each_step(self) -> list[Parameters]:
        state = self._learner.begin(self._num_tasks)
        states = [state]
        for step, batch in enumerate(self._support[:-1]):
            state = self._learner.adapt(state, batch, step=step)
            states.append(state)
        return states

    def _jacobian(self, stride: int) -> AdaptationJacobian:
        learner = self._learner
        if learner.first_order:
            return AdaptationJacobian([], [])
        thinned = [batch.every(stride) for batch in self._support]
        hessians = [
            TaskHessians(learner.inner_loss, state, batch, chunk_size=learner.chunk_size(batch.num_steps))
            for state, batch in zip(self._states, thinned, strict=True)
        ]
        return AdaptationJacobian(hessians, [learner.step_size(step) for step in range(len(hessians))])

    def _mean_over_tasks(self, values: Parameters) -> Tensor:
        """The mean as a flat vector of meta-parameters: what a state holds besides is left out, what it lacks zero."""
        like = self._learner.begin(self._num_tasks)
        parts = [values[name] if name in values else torch.zeros_like(like[name]) for name in self._learner.parameters]
        return torch.cat([part.flatten(1) for part in parts], dim=1).sum(0) / self._num_tasks


def credits_of(query: PolicyBatch) -> Tensor:
    """[N]: each task's return above the others' mean, which its own support does not touch, in the surrogate's unit."""
    returns, scale = query.mean_return, query.return_scale
    others = (returns.sum() - returns) / max(1, len(returns) - 1)
    above = returns - others if len(returns) > 1 else returns
    return torch.where(scale > 0.0, above / scale, torch.zeros_like(scale))
