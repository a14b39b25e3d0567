"""Policy-gradient MAML with a trust-region outer step.

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML
2017,
arXiv:1703.03400. Inner loop: REINFORCE with a linear feature baseline. Outer step: TRPO on the adapted policies.

Differs from the paper: the Hessian-vector products are exact (the authors used finite differences), in the factored
form J^T F J with J the Jacobian of the inner loop and F the Fisher matrix of the adapted policy; every collection
holds whole trajectories, the same number for every task. Like the authors' code, the inner loss is the log-likelihood
times the advantage, whose Hessian leaves out how the parameters change the sampling distribution (arXiv:1810.06784,
section 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from metarl.episodes import Episodes, Trajectories, to_device
from metarl.errors import require
from metarl.inner_loop import (
    AdaptationJacobian,
    Parameters,
    TaskHessians,
    TaskOutputs,
    adapt,
    over_chunks,
    over_tasks,
)
from metarl.learner import Acted, ScoreName, Spaces, Unit
from metarl.networks import Activation, Distribution, Stateless, make_policy
from metarl.returns import discounted_returns, generalized_advantages, linear_baseline, standardize
from metarl.trust_region import trust_region_step


@dataclass(frozen=True)
class MAMLConfig:
    """Settings of MAML; the defaults are the paper's for half-cheetah-dir."""

    inner_lr: float = 0.1
    """Step size of the inner loop. Larger adapts further per step; too large and the adapted policy collapses."""
    num_adaptation_steps: int = 1
    """Inner steps in meta-training."""
    num_trajectories: int = 20
    """Trajectories per task and collection, for support and query alike."""
    later_step_scale: float = 0.5
    """Factor on inner_lr for test-time steps beyond those meta-trained; the paper halves."""
    first_order: bool = False
    """Leave second derivatives out of the meta-gradient (FOMAML)."""
    gamma: float = 0.99
    """Discount, in [0, 1]."""
    gae_lambda: float = 1.0
    """Generalised advantage estimation, in [0, 1]; 1 is return minus baseline."""
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
    hidden_sizes: tuple[int, ...] = (100, 100)
    """Widths of the policy's hidden layers."""
    activation: Activation = "relu"
    """Of the hidden layers."""
    output_gain: float = 1.0
    """Factor on the last layer's Xavier-uniform initial weights; smaller starts nearer to doing nothing."""
    initial_std: float = 1.0
    """Standard deviation of continuous actions at the start, in the policy's units."""
    min_std: float = 1e-6
    """Lower bound of the standard deviation."""
    chunk_steps: int = 2000
    """Steps of data per pass at most (one task at least), so that activations stay in the cache."""

    def __post_init__(self) -> None:
        require(0.0 < self.inner_lr < math.inf, "agent.inner_lr", self.inner_lr, "a positive number")
        counts = "num_adaptation_steps num_trajectories cg_iterations max_backtracks curvature_every chunk_steps"
        for name in counts.split():
            require(getattr(self, name) >= 1, f"agent.{name}", getattr(self, name), "an integer >= 1")
        for name in ("gamma", "gae_lambda"):
            require(0.0 <= getattr(self, name) <= 1.0, f"agent.{name}", getattr(self, name), "in [0, 1]")
        for name in ("max_kl", "initial_std", "min_std", "later_step_scale", "output_gain"):
            require(0.0 < getattr(self, name) < math.inf, f"agent.{name}", getattr(self, name), "a positive number")
        require(0.0 <= self.cg_damping < math.inf, "agent.cg_damping", self.cg_damping, "a number >= 0")
        require(0.0 < self.backtrack_ratio < 1.0, "agent.backtrack_ratio", self.backtrack_ratio, "in (0, 1)")
        require(self.activation in ("tanh", "relu"), "agent.activation", self.activation, "'tanh' or 'relu'")
        require(all(w >= 1 for w in self.hidden_sizes), "agent.hidden_sizes", self.hidden_sizes, "positive integers")


class PolicyBatch(NamedTuple):
    """Prepared trajectories: N tasks, S steps each, live ones first; S is the largest number of live steps of a task.

    Attributes:
        observations: [N, S, observation_size].
        actions: [N, S, action_size] or [N, S].
        log_probs: [N, S], under the policy that acted.
        advantages: [N, S], standardised per task.
        mask: [N, S].
        mean_return: [N], undiscounted.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    mask: Tensor
    mean_return: Tensor

    @property
    def num_steps(self) -> int:
        """S."""
        return self.mask.shape[1]

    def every(self, stride: int) -> PolicyBatch:
        """Every `stride`-th step."""
        if stride == 1:
            return self
        thinned = {name: getattr(self, name)[:, ::stride] for name in self._fields if name != "mean_return"}
        return self._replace(**thinned)


class MAML:
    """The learner. Its adapted state is one set of policy parameters per task.

    Args:
        config: settings.
        spaces: of the environments.
        generator: draws the initial weights.
    """

    Config = MAMLConfig
    unit: Unit = "gradient steps"
    score_name: ScoreName = "return"

    def __init__(self, config: MAMLConfig, spaces: Spaces, *, generator: torch.Generator) -> None:
        self.config = config
        self.spaces = spaces
        self.num_adaptation_steps = config.num_adaptation_steps
        module = self._make_module(generator)
        self._policy = Stateless(module)
        self._parameters: Parameters = {name: value.detach() for name, value in module.named_parameters()}

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return self._parameters

    @property
    def device(self) -> torch.device:
        return next(iter(self._parameters.values())).device

    def to(self, device: torch.device | str) -> Self:
        self._parameters = to_device(self._parameters, device)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"parameters": dict(self._parameters)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        loaded = state["parameters"]
        expected = {name: tuple(value.shape) for name, value in self._parameters.items()}
        found = {name: tuple(value.shape) for name, value in loaded.items()}
        if expected != found:
            raise ValueError(f"parameters do not fit the policy: expected {expected}, found {found}")
        # Copied into memory of torch's own: where a file's bytes lie, the last bits of a matrix product may differ.
        self._parameters = {name: value.to(self.device, copy=True) for name, value in loaded.items()}

    def policy(self, state: Parameters, task: int) -> nn.Module:
        """The adapted policy of one task, as a module on the CPU: [..., observation_size] -> action distribution."""
        module = self._make_module(torch.Generator())
        module.load_state_dict({name: value[task] for name, value in state.items()})
        return module

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Parameters:
        source = self._parameters if parameters is None else parameters
        return {name: value.expand(num_tasks, *value.shape) for name, value in source.items()}

    def act(self, state: Parameters, observations: Tensor, noise: Tensor) -> tuple[Acted, Parameters]:
        distribution = self._distribution(state, observations)
        actions = distribution.sample(noise)
        log_probs = distribution.log_prob(actions)
        return Acted(actions, log_probs), state

    def observe(
        self, state: Parameters, actions: Tensor, rewards: Tensor, terminated: Tensor, truncated: Tensor
    ) -> Parameters:
        return state

    def prepare(self, data: Trajectories) -> PolicyBatch:
        """Returns, baseline and per-task standardised advantages.

        The horizon is part of the task and the baseline knows the time, so nothing is bootstrapped at a truncation.
        """
        gamma = self.config.gamma
        mask = data.mask.flatten(1)
        returns = discounted_returns(data.rewards, data.mask, gamma=gamma)
        chunk_size = self.chunk_size(mask.shape[1])
        values = over_chunks(linear_baseline, data.observations, returns, data.mask, chunk_size=chunk_size)
        advantages = generalized_advantages(
            data.rewards,
            values,
            data.mask,
            gamma=gamma,
            gae_lambda=self.config.gae_lambda,
            last_values=torch.zeros_like(values[..., 0]),
        )
        order = mask.argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]

        def packed(values: Tensor) -> Tensor:
            index = order.reshape(*order.shape, *(1,) * (values.dim() - 2))
            return values.gather(1, index.expand(*order.shape, *values.shape[2:]))

        return PolicyBatch(
            observations=packed(data.observations.flatten(1, 2)),
            actions=packed(data.actions.flatten(1, 2)),
            log_probs=packed(data.log_probs.flatten(1)),
            advantages=packed(standardize(advantages, data.mask).flatten(1)),
            mask=packed(mask),
            mean_return=data.mean_returns(),
        )

    def adapt(self, state: Parameters, support: PolicyBatch, *, step: int, differentiable: bool = False) -> Parameters:
        with torch.set_grad_enabled(differentiable):
            return adapt(
                self.inner_loss,
                state,
                support,
                self._step_size(step),
                first_order=self.config.first_order,
                chunk_size=self.chunk_size(support.num_steps),
            )

    def score(self, state: Parameters, query: PolicyBatch) -> Tensor:
        return query.mean_return

    def meta_update(self, episodes: Episodes[Parameters, PolicyBatch]) -> dict[str, float]:
        """One TRPO step on the surrogate of the adapted policies, averaged over tasks."""
        outer = _OuterStep(self, episodes)
        gradient = outer.gradient()
        config = self.config
        result = trust_region_step(
            _flatten(self._parameters),
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
        self._parameters = {name: part.clone() for name, part in _unflatten(result.vector, self._parameters).items()}
        metrics = {
            "surrogate_improvement": result.improvement,
            "approx_kl": result.kl,
            "accepted": float(result.accepted),
            "backtracks": float(result.backtracks),
            "gradient_norm": float(gradient.norm()),
        }
        if "log_std" in self._parameters:
            metrics["std"] = float(self._parameters["log_std"].exp().mean())
        return metrics

    def inner_loss(self, parameters: Parameters, batch: PolicyBatch) -> Tensor:
        """REINFORCE for ONE task: -mean over live steps of log pi(a|s) A."""
        log_probs = self._distribution(parameters, batch.observations).log_prob(batch.actions)
        return -_live_mean(log_probs * batch.advantages, batch.mask)

    def chunk_size(self, num_steps: int) -> int:
        """Tasks per pass over the data at most, of `num_steps` steps each."""
        return max(1, self.config.chunk_steps // max(1, num_steps))

    def _distribution(self, parameters: Parameters, observations: Tensor) -> Distribution:
        distribution: Distribution = self._policy(parameters, observations)
        return distribution

    def _make_module(self, generator: torch.Generator) -> nn.Module:
        return make_policy(
            self.spaces,
            hidden_sizes=self.config.hidden_sizes,
            activation=self.config.activation,
            initial_std=self.config.initial_std,
            min_std=self.config.min_std,
            generator=generator,
            output_gain=self.config.output_gain,
        )

    def _step_size(self, step: int) -> float:
        later = step >= self.config.num_adaptation_steps
        return self.config.inner_lr * (self.config.later_step_scale if later else 1.0)


class _OuterStep:
    """The outer problem of one meta-batch: gradient, curvature product and value of a candidate, on flat vectors."""

    def __init__(self, learner: MAML, episodes: Episodes[Parameters, PolicyBatch]) -> None:
        self._learner = learner
        self._num_tasks = len(episodes.tasks)
        self._support, self._query, self._adapted = episodes.support, episodes.query, episodes.state
        self._outputs = self._query_outputs(1)
        self._old: Distribution = self._outputs.values
        self._step_sizes = [learner._step_size(step) for step in range(len(self._support))]
        config = learner.config
        stride = config.curvature_every
        states = [] if config.first_order else self._states_before_each_step()
        self._exact = self._jacobian(states, 1)
        self._coarse = self._exact if stride == 1 else self._jacobian(states, stride)
        outputs = self._outputs if stride == 1 else self._query_outputs(stride)
        self._fisher = outputs.gauss_newton(kl_from, (self._query.every(stride), outputs.values))

    def value(self) -> float:
        """The mean surrogate at the present meta-parameters."""
        return float(over_tasks(surrogate, self._old, self._query).mean())

    def gradient(self) -> Tensor:
        """Of the mean surrogate with respect to the meta-parameters, through the inner loop."""
        per_task = over_tasks(torch.func.grad(surrogate), self._old, self._query)
        return self._mean_over_tasks(self._exact.pull(self._outputs.pull(per_task)))

    def product(self, vector: Tensor) -> Tensor:
        """mean over tasks of J^T F J v."""
        tangents = self._learner.begin(self._num_tasks, parameters=_unflatten(vector, self._learner.parameters))
        return self._mean_over_tasks(self._coarse.pull(self._fisher(self._coarse.push(tangents))))

    def evaluate(self, vector: Tensor) -> tuple[float, float]:
        """Surrogate and KL of candidate meta-parameters, adapted on the stored support."""
        learner = self._learner
        state = learner.begin(self._num_tasks, parameters=_unflatten(vector, learner.parameters))
        for step, batch in enumerate(self._support):
            state = learner.adapt(state, batch, step=step)

        def values(parameters: Parameters, data: PolicyBatch, old: Distribution) -> tuple[Tensor, Tensor]:
            new = learner._distribution(parameters, data.observations)
            return surrogate(new, data), kl_from(new, (data, old))

        with torch.no_grad():
            chunk_size = learner.chunk_size(self._query.num_steps)
            surrogates, kls = over_tasks(values, state, self._query, self._old, chunk_size=chunk_size)
        return float(surrogates.mean()), float(kls.mean())

    def _query_outputs(self, stride: int) -> TaskOutputs:
        learner = self._learner
        data = self._query.every(stride)
        chunk_size = learner.chunk_size(data.num_steps)
        return TaskOutputs(learner._distribution, self._adapted, data.observations, chunk_size=chunk_size)

    def _states_before_each_step(self) -> list[Parameters]:
        state = self._learner.begin(self._num_tasks)
        states = [state]
        for step, batch in enumerate(self._support[:-1]):
            state = self._learner.adapt(state, batch, step=step)
            states.append(state)
        return states

    def _jacobian(self, states: list[Parameters], stride: int) -> AdaptationJacobian:
        learner = self._learner
        thinned = [batch.every(stride) for batch in self._support[: len(states)]]
        hessians = [
            TaskHessians(learner.inner_loss, state, batch, chunk_size=learner.chunk_size(batch.num_steps))
            for state, batch in zip(states, thinned, strict=True)
        ]
        return AdaptationJacobian(hessians, self._step_sizes[: len(hessians)])

    def _mean_over_tasks(self, values: Parameters) -> Tensor:
        return torch.cat([value.flatten(1) for value in values.values()], dim=1).sum(0) / self._num_tasks


def surrogate(distribution: Distribution, batch: PolicyBatch) -> Tensor:
    """For ONE task: mean over live steps of pi(a|s) / pi_behaviour(a|s) A."""
    log_probs = distribution.log_prob(batch.actions)
    return _live_mean((log_probs - batch.log_probs).exp() * batch.advantages, batch.mask)


def kl_from(distribution: Distribution, batch: tuple[PolicyBatch, Distribution]) -> Tensor:
    """For ONE task: mean over live steps of KL(old || distribution), the old one being part of the data."""
    data, old = batch
    return _live_mean(old.kl(distribution), data.mask)  # type: ignore[arg-type]


def _live_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(-1) / mask.sum(-1).clamp_min(1.0)


def _flatten(parameters: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in parameters.values()])


def _unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Parameters:
    parts = torch.split(vector, [value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
