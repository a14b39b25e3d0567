"""Policies that adapt by gradient steps on their own experience: the common part of the algorithms in `metarl.agents`.

An algorithm is a subclass of `AdaptivePolicy` with a `meta_update`. It may also choose the inner loss, the step sizes
and the content of the adapted state.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from metarl.core.bounds import AtLeast, Between, Positive
from metarl.core.config import LearnerConfig
from metarl.core.data import Episodes, Trajectories, live_first
from metarl.core.learner import Acted, ScoreName, Spaces, Traits, loaded
from metarl.core.trees import to_device
from metarl.gradients.adaptation import Parameters, StepSize, adapt
from metarl.gradients.curvature import TaskHessians, TaskOutputs
from metarl.gradients.lifting import over_chunks
from metarl.networks.policies import Activation, Distribution, Stateless, make_policy
from metarl.rl.normalization import Normalizer, load_state_of, state_of
from metarl.rl.returns import discounted_returns, generalized_advantages, linear_baseline, standardize


@dataclass(frozen=True)
class BasePolicyConfig(LearnerConfig):
    """Settings of a policy, its experience and its gradient steps.

    How many of these steps meta-training takes is a setting of `PolicyConfig` only.
    """

    inner_lr: Annotated[float, Positive] = 0.1
    """Step size of the inner loop. Larger: each step adapts further; too large: the adapted policy collapses."""
    num_trajectories: Annotated[int, AtLeast(1)] = 20
    """Trajectories per task and collection, for support and query alike."""
    later_step_scale: Annotated[float, Positive] = 0.5
    """Factor on inner_lr for test-time steps beyond those of meta-training; the paper uses 0.5."""
    gamma: Annotated[float, Between(0, 1)] = 0.99
    """Discount."""
    gae_lambda: Annotated[float, Between(0, 1)] = 1.0
    """Generalised advantage estimation; 1 is return minus baseline."""
    hidden_sizes: Annotated[tuple[int, ...], AtLeast(1)] = (100, 100)
    """Widths of the policy's hidden layers."""
    activation: Activation = "relu"
    """Activation function of the hidden layers."""
    output_gain: Annotated[float, Positive] = 1.0
    """Factor on the last layer's Xavier-uniform initial weights. Smaller: the first actions are closer to zero."""
    initial_std: Annotated[float, Positive] = 1.0
    """Standard deviation of continuous actions at the start, in the policy's units."""
    min_std: Annotated[float, Positive] = 1e-6
    """Lower bound of the standard deviation."""
    chunk_steps: Annotated[int, AtLeast(1)] = 2000
    """Steps of data per pass at most (one task at least), so that activations fit into the processor's cache."""
    normalize_observations: bool = False
    """Subtract the running mean of the observations, divide by their standard deviation, and clip to [-10, 10]. Use
    it if observations are much larger or smaller than 1. The statistics change only after a meta-update."""

    @property
    def num_adaptation_steps(self) -> int:
        """Adaptation steps in meta-training."""
        return 0


@dataclass(frozen=True)
class PolicyConfig(BasePolicyConfig):
    """Settings of a policy, its experience and its inner loop in meta-training."""

    num_adaptation_steps: Annotated[int, AtLeast(1)] = 1
    """Inner steps in meta-training."""


class PolicyBatch(NamedTuple):
    """Prepared trajectories: N tasks with S steps each, one whole trajectory after the other, live steps first.

    S is the largest number of live steps of a task.

    Attributes:
        observations: [N, S, observation_size].
        actions: [N, S, action_size] or [N, S].
        log_probs: [N, S], under the policy that acted.
        advantages: [N, S], standardised per task.
        mask: [N, S].
        starts: [N, S] int64, the index on this axis at which the trajectory of the step begins.
        mean_return: [N], undiscounted.
        return_scale: [N], one unit of the surrogate in units of a trajectory's return: the standard deviation of the
            advantages times the mean length of a trajectory.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    mask: Tensor
    starts: Tensor
    mean_return: Tensor
    return_scale: Tensor

    @property
    def num_steps(self) -> int:
        """S, steps per task."""
        return self.mask.shape[1]

    def every(self, stride: int) -> PolicyBatch:
        """Every `stride`-th step, without the bounds of trajectories (`starts`)."""
        if stride == 1:
            return self
        per_step = ("observations", "actions", "log_probs", "advantages", "mask")
        thinned = {name: getattr(self, name)[:, ::stride] for name in per_step}
        return self._replace(**thinned, starts=torch.full_like(self.starts[:, ::stride], -1))


class AdaptivePolicy(ABC):
    """A learner without its `meta_update`. Its adapted state is one set of policy parameters per task.

    A `meta_update` must end with `see(episodes)`.

    Args:
        config: settings.
        spaces: of the environments.
        generator: draws the initial weights, and the seed of any other random numbers of a subclass.

    Attributes:
        first_order: derivatives through an adaptation treat the inner gradient as a constant.
        normalizer: of the observations; None if they are not normalised.
    """

    traits = Traits(unit="gradient steps", step_size_can_scale=True)
    score_name: ScoreName = "return"
    first_order = False
    config: BasePolicyConfig

    def __init__(self, config: BasePolicyConfig, spaces: Spaces, *, generator: torch.Generator) -> None:
        self.config = config
        self.spaces = spaces
        self.num_adaptation_steps = config.num_adaptation_steps
        module = self._make_module(generator)
        self._policy = Stateless(module)
        self._parameters: Parameters = {name: value.detach() for name, value in module.named_parameters()}
        self._policy_names = tuple(self._parameters)
        self.normalizer = Normalizer(spaces.observation_size) if config.normalize_observations else None

    @abstractmethod
    def meta_update(self, episodes: Episodes[Parameters, PolicyBatch]) -> dict[str, float]:
        """As in `metarl.core.learner.Learner`."""

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
        return {"parameters": dict(self._parameters), **state_of(self.normalizer)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        parameters = loaded(self._parameters, state["parameters"], what="parameters")
        load_state_of(self.normalizer, state)
        self._parameters = parameters

    def policy(self, state: Parameters, task: int) -> nn.Module:
        """The adapted policy of one task, as a module on the CPU: [..., observation_size] -> action distribution."""
        module = self._make_module(torch.Generator())
        module.load_state_dict({name: state[name][task] for name in self._policy_names})
        return module if self.normalizer is None else self.normalizer.wrapped(module)

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Parameters:
        source = self._parameters if parameters is None else parameters
        return {name: value.expand(num_tasks, *value.shape) for name, value in source.items()}

    def act(self, state: Parameters, observations: Tensor, noise: Tensor) -> tuple[Acted, Parameters]:
        distribution = self.distribution(state, observations)
        actions = distribution.sample(noise)
        log_probs = distribution.log_prob(actions)
        return Acted(actions, log_probs), state

    def observe(
        self, state: Parameters, actions: Tensor, rewards: Tensor, terminated: Tensor, truncated: Tensor
    ) -> Parameters:
        return state

    def prepare(self, data: Trajectories) -> PolicyBatch:
        """Returns, baseline and per-task standardised advantages.

        There is no bootstrap at a truncation: the horizon is part of the task, and the baseline depends on the time.
        """
        gamma = self.config.gamma
        mask = data.mask.flatten(1)
        returns = discounted_returns(data.rewards, data.mask, gamma=gamma)
        chunk_size = self.chunk_size(mask.shape[1])
        observations = data.observations if self.normalizer is None else self.normalizer(data.observations)
        values = over_chunks(linear_baseline, observations, returns, data.mask, chunk_size=chunk_size)
        advantages = generalized_advantages(
            data.rewards,
            values,
            data.mask,
            gamma=gamma,
            gae_lambda=self.config.gae_lambda,
            last_values=torch.zeros_like(values[..., 0]),
        )
        packed = live_first(mask)
        lengths = data.mask.sum(-1)
        starts = (lengths.cumsum(1) - lengths).long().unsqueeze(-1).expand(data.mask.shape)
        live = packed(mask)
        return PolicyBatch(
            observations=packed(data.observations.flatten(1, 2)),
            actions=packed(data.actions.flatten(1, 2)),
            log_probs=packed(data.log_probs.flatten(1)),
            advantages=packed(standardize(advantages, data.mask).flatten(1)),
            mask=live,
            starts=packed(starts.flatten(1)).clamp_max(live.shape[1] - 1),
            mean_return=data.mean_returns(),
            return_scale=_standard_deviation(advantages.flatten(1), mask)
            * mask.sum(1)
            / data.mask[..., 0].sum(1).clamp_min(1.0),
        )

    def see(self, episodes: Episodes[Parameters, PolicyBatch]) -> None:
        """Updates the statistics of the observations. A meta-update calls it at its end.

        So the update uses the same statistics as the collection of its data.
        """
        if self.normalizer is not None:
            for batch in (*episodes.support, episodes.query):
                self.normalizer.update(batch.observations, batch.mask)

    def adapt(self, state: Parameters, support: PolicyBatch, *, step: int, differentiable: bool = False) -> Parameters:
        with torch.set_grad_enabled(differentiable):
            return adapt(
                self.inner_loss,
                state,
                support,
                self.step_size(step),
                first_order=self.first_order,
                chunk_size=self.chunk_size(support.num_steps),
            )

    def adaptation_path(self, state: Parameters, support: Sequence[PolicyBatch]) -> list[Parameters]:
        """`state`, and the state after each of the adaptation steps on `support`, one batch a step."""
        path = [state]
        for step, batch in enumerate(support):
            path.append(self.adapt(path[-1], batch, step=step))
        return path

    def score(self, state: Parameters, query: PolicyBatch) -> Tensor:
        return query.mean_return

    def inner_loss(self, parameters: Parameters, batch: PolicyBatch) -> Tensor:
        """REINFORCE for ONE task: -mean over live steps of log pi(a|s) A."""
        log_probs = self.distribution(parameters, batch.observations).log_prob(batch.actions)
        return -live_mean(log_probs * batch.advantages, batch.mask)

    def step_size(self, step: int) -> StepSize:
        """The step size of adaptation step `step`.

        `later_step_scale` applies to steps beyond those of meta-training, but never to the first step.
        """
        later = step >= max(1, self.config.num_adaptation_steps)
        return self.config.inner_lr * (self.config.later_step_scale if later else 1.0)

    def with_step_scale(self, factor: float) -> Self:
        """A copy with test-time steps `factor` times as large; it shares the parameters."""
        scaled = copy.copy(self)
        scaled.config = replace(self.config, inner_lr=factor * self.config.inner_lr)
        return scaled

    def chunk_size(self, num_steps: int) -> int:
        """The largest number of tasks per pass over the data, for `num_steps` steps each."""
        return max(1, self.config.chunk_steps // max(1, num_steps))

    def distribution(self, parameters: Parameters, observations: Tensor) -> Distribution:
        """The distribution of actions, for ONE task's parameters or with the task axis leading.

        `parameters` may also hold entries that are not of the policy.
        """
        own = {name: parameters[name] for name in self._policy_names}
        seen = observations if self.normalizer is None else self.normalizer(observations)
        distribution: Distribution = self._policy(own, seen)
        return distribution

    def outputs(self, state: Parameters, data: PolicyBatch) -> TaskOutputs[Distribution]:
        """The action distributions of every task at its data, with derivatives in the parameters."""
        return TaskOutputs(self.distribution, state, data.observations, chunk_size=self.chunk_size(data.num_steps))

    def hessians(self, state: Parameters, batch: PolicyBatch) -> TaskHessians:
        """The Hessian of every task's inner loss at its parameters."""
        return TaskHessians(self.inner_loss, state, batch, chunk_size=self.chunk_size(batch.num_steps))

    @property
    def _num_extra_inputs(self) -> int:
        """Number of inputs of the policy's network besides the observation."""
        return 0

    def _make_module(self, generator: torch.Generator) -> nn.Module:
        inputs = self.spaces.observation_size + self._num_extra_inputs
        return make_policy(
            replace(self.spaces, observation_size=inputs),
            hidden_sizes=self.config.hidden_sizes,
            activation=self.config.activation,
            initial_std=self.config.initial_std,
            min_std=self.config.min_std,
            generator=generator,
            output_gain=self.config.output_gain,
        )


def surrogate(distribution: Distribution, batch: PolicyBatch) -> Tensor:
    """For ONE task: mean over live steps of pi(a|s) / pi_behaviour(a|s) A."""
    log_probs = distribution.log_prob(batch.actions)
    return live_mean((log_probs - batch.log_probs).exp() * batch.advantages, batch.mask)


def clipped_surrogate(ratio: Tensor, batch: PolicyBatch, clip_range: float) -> Tensor:
    """For ONE task: mean over live steps of min(r A, clip(r, 1 - clip_range, 1 + clip_range) A).

    Reference: Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    return live_mean(clipped_gain(ratio, batch.advantages, clip_range), batch.mask)


def clipped_gain(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """The terms of PPO's clipped surrogate, one for each step: ratio [...], advantages [...] -> [...]."""
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return torch.minimum(ratio * advantages, clipped * advantages)


def dice(distribution: Distribution, batch: PolicyBatch) -> Tensor:
    """For ONE task: a surrogate whose derivatives of any order estimate those of the return at the acting parameters.

    Let W_t be the likelihood ratio of a trajectory's actions up to t, against the stored log-probabilities. The
    surrogate is the mean over live steps of (W_t - W_{t-1}) A_t. At the parameters that acted, W_t has the value and
    all derivatives of the paper's magic box exp(x - stop(x)). At other parameters, as in a line search, it is the
    correct importance weight. The baseline cancels from the expectation of every derivative, because of the differences
    of W.

    Reference: Foerster et al. 2018, arXiv:1802.05098; Farquhar et al. 2019, arXiv:1909.10549 for advantages.
    """
    log_ratios = (distribution.log_prob(batch.actions) - batch.log_probs) * batch.mask
    before = log_ratios.cumsum(-1) - log_ratios
    before = before - before.gather(-1, batch.starts)
    return live_mean(((before + log_ratios).exp() - before.exp()) * batch.advantages, batch.mask)


def log_likelihood_ratio(distribution: Distribution, batch: PolicyBatch) -> Tensor:
    """For ONE task: the log-likelihood of all its actions, minus that under the policy that acted."""
    return ((distribution.log_prob(batch.actions) - batch.log_probs) * batch.mask).sum(-1)


def kl_from(distribution: Distribution, batch: tuple[PolicyBatch, Distribution]) -> Tensor:
    """For ONE task: mean over live steps of KL(old || distribution); the old distribution is part of the data."""
    data, old = batch
    return live_mean(old.kl(distribution), data.mask)  # type: ignore[arg-type]


def live_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the steps (last axis) whose mask is 1; zero where there are none."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp_min(1.0)


def _standard_deviation(values: Tensor, mask: Tensor) -> Tensor:
    return live_mean((values - live_mean(values, mask).unsqueeze(-1)).square(), mask).sqrt()
