"""RL²: a policy with a memory, trained by proximal policy optimisation on whole trials.

Yan Duan, John Schulman, Xi Chen, Peter L. Bartlett, Ilya Sutskever, Pieter Abbeel: RL²: Fast Reinforcement Learning via
Slow Reinforcement Learning. 2016, arXiv:1611.02779. (The same idea: Wang et al. 2016, arXiv:1611.05763.)

A trial consists of several trajectories of one task in a row. The policy sees the observation, and the action, reward
and done flag of the step before, also across the end of a trajectory. Its memory is cleared only when a trial begins.
Returns and advantages continue across the ends of trajectories inside a trial.

Differs from the paper: PPO (Schulman et al. 2017, arXiv:1707.06347) instead of TRPO, and an LSTM by default instead of
a GRU. The value is a second head on the policy's memory. Options beyond the paper: a transformer or a memory-augmented
network as memory, and an auxiliary loss that predicts rewards.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from torch import Tensor, nn

from metarl.core.bounds import AtLeast, Between, Positive
from metarl.core.config import LearnerConfig, TrainerConfig
from metarl.core.data import Episodes, Trajectories
from metarl.core.errors import require
from metarl.core.learner import Acted, ScoreName, Spaces, Traits, loaded
from metarl.core.trees import to_device, tree_map
from metarl.gradients.adam import require_moments
from metarl.gradients.lifting import over_chunks
from metarl.networks.memories import MemoryName
from metarl.networks.policies import Distribution, action_std
from metarl.networks.recurrent_policy import RecurrentPolicy
from metarl.rl.normalization import Normalizer, load_state_of, state_of
from metarl.rl.policy_gradient import clipped_gain
from metarl.rl.returns import discounted_returns, generalized_advantages, mean_of_live, standardize, variance_of_live
from metarl.rl.schedule import require_within_schedule, schedule_left
from metarl.rl.trials import TrialData, Trials, TrialState, delayed, join_trials, memory_inputs


@dataclass(frozen=True)
class RL2Config(LearnerConfig):
    """Settings of RL²."""

    memory: MemoryName = "lstm"
    """Kind of the memory: lstm, gru, transformer, or mann (memory-augmented network)."""
    hidden_size: Annotated[int, AtLeast(1)] = 64
    """Width of the memory."""
    trajectories_per_trial: Annotated[int, AtLeast(1)] = 2
    """Trajectories per trial. They follow one another on one task, and the memory is kept between them."""
    num_trajectories: Annotated[int, AtLeast(1)] = 20
    """Trials per task in one collection."""
    learning_rate: Annotated[float, Positive] = 1e-3
    """Adam's step size at the start."""
    schedule_iterations: Annotated[int | None, AtLeast(1)] = None
    """Iterations in which the step size and the entropy bonus fall to zero linearly. None = they do not fall."""
    epochs: Annotated[int, AtLeast(1)] = 5
    """Passes over an iteration's trials."""
    num_minibatches: Annotated[int, AtLeast(1)] = 4
    """Minibatches per pass; each consists of whole trials, in random order."""
    clip_range: Annotated[float, Positive] = 0.2
    """PPO's bound on the change of a probability ratio."""
    gamma: Annotated[float, Between(0, 1)] = 0.99
    """Discount along the trial."""
    gae_lambda: Annotated[float, Between(0, 1)] = 0.95
    """Generalised advantage estimation along the trial."""
    bootstrap: bool = False
    """Add the critic's value after the last step, if the last trajectory was truncated. If false: the return ends with
    the trial."""
    value_coef: Annotated[float, AtLeast(0)] = 0.5
    """Weight of the value loss."""
    entropy_coef: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the entropy bonus at the start; it falls with the step size."""
    prediction_coef: Annotated[float, AtLeast(0)] = 0.0
    """Weight of an auxiliary loss: a third head, linear in the action, predicts the next reward. So the memory learns
    to keep information about rewards. 0 = no such loss, as in the paper."""
    max_grad_norm: Annotated[float, Positive] = 0.5
    """Gradients with a larger norm are scaled down to this norm."""
    output_gain: Annotated[float, Positive] = 0.01
    """Factor on the policy head's Xavier-uniform initial weights. Smaller: discrete actions start nearer to uniform."""
    initial_std: Annotated[float, Positive] = 1.0
    """Standard deviation of continuous actions at the start, in the policy's units."""
    chunk_steps: Annotated[int, AtLeast(1)] = 12_500
    """Steps of data per pass through the network at most (one trial at least). The passes of a minibatch run side by
    side."""
    normalize_observations: bool = False
    """Subtract the running mean of the observations, divide by their standard deviation, and clip to [-10, 10]. Use
    it if observations are much larger or smaller than 1. The statistics change only after a meta-update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.memory != "transformer" or self.hidden_size % 8 == 0
        require(fits, "agent.hidden_size", self.hidden_size, "a multiple of 8 with memory 'transformer'")

    def check_trainer(self, trainer: TrainerConfig) -> None:
        require_within_schedule(self.schedule_iterations, trainer)


class RL2:
    """The learner. Its adapted state is the memory of every trial.

    Args:
        config: settings.
        spaces: of the environments.
        generator: draws the initial weights and the seed of the shuffling.

    Attributes:
        network: memory and heads.
        value_scale: the unit of the value head: a running root mean square of the returns; 0 before the first update.
    """

    Config = RL2Config
    traits = Traits(unit="trajectories", state_per="trajectory")
    score_name: ScoreName = "return"

    def __init__(self, config: RL2Config, spaces: Spaces, *, generator: torch.Generator) -> None:
        self.config = config
        self.spaces = spaces
        self.num_adaptation_steps = config.trajectories_per_trial - 1
        self.network = RecurrentPolicy(
            spaces,
            spaces.observation_size + spaces.action_size + 2,
            memory=config.memory,
            hidden_size=config.hidden_size,
            output_gain=config.output_gain,
            initial_std=config.initial_std,
            predicts_rewards=config.prediction_coef > 0.0,
            generator=generator,
        )
        self._shuffle_seed = int(torch.randint(2**31, (), generator=generator))
        self._optimizer = self._make_optimizer()
        self._updates = 0
        self.value_scale = 0.0
        self._elsewhere: RecurrentPolicy | None = None
        self.normalizer = Normalizer(spaces.observation_size) if config.normalize_observations else None

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {name: value.detach() for name, value in self.network.named_parameters()}

    @property
    def device(self) -> torch.device:
        return self.network.policy.weight.device

    def to(self, device: torch.device | str) -> Self:
        state = self.state_dict()
        self.network.to(device)
        self._optimizer = self._make_optimizer()
        self.load_state_dict(to_device(state, device))
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "parameters": tree_map(torch.clone, dict(self.parameters)),
            "optimizer": tree_map(torch.clone, self._optimizer.state_dict()["state"]),
            "updates": self._updates,
            "value_scale": self.value_scale,
            **state_of(self.normalizer),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_state_of(self.normalizer, state)
        own = self.parameters
        for name, value in loaded(own, state["parameters"], what="parameters").items():
            own[name].copy_(value)
        groups = self._optimizer.state_dict()["param_groups"]
        moments = tree_map(torch.clone, state["optimizer"])
        require_moments(moments, list(own.values()))
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._updates = int(state["updates"])
        self.value_scale = float(state["value_scale"])
        self._elsewhere = None

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> TrialState:
        if parameters is not None:
            raise ValueError("the state of RL2 is a memory: it holds no parameters to replace")
        weight = self.network.policy.weight
        size = (num_tasks, 1)
        return TrialState(
            memory=tuple(part.unsqueeze(1) for part in self.network.memory.initial(num_tasks)),
            action=weight.new_zeros(*size, self.spaces.action_size),
            reward=weight.new_zeros(size),
            done=weight.new_zeros(size),
            over=torch.zeros(size, dtype=torch.bool, device=weight.device),
        )

    def distribution(self, state: TrialState, observations: Tensor) -> tuple[Distribution, Tensor, TrialState]:
        """The distribution of the next actions, the values [N, K], and the state after `observations` [N, K, ...]."""
        network = self._network_on(observations.device)
        state, size = state.widened(observations.shape[1]), observations.shape[:2]
        inputs = memory_inputs(self._seen(observations.to(state.action.dtype)), state.action, state.reward, state.done)
        memory = tuple(part.flatten(0, 1) for part in state.memory)
        live = None if not bool(state.over.any()) else ~state.over.flatten()
        outputs, memory = network.memory.step(inputs.flatten(0, 1), memory, live=live)
        distribution, values = network.heads(outputs.reshape(*size, -1))
        state = state._replace(memory=tuple(part.reshape(*size, *part.shape[1:]) for part in memory))
        return distribution, values * self.value_scale, state

    def act(self, state: TrialState, observations: Tensor, noise: Tensor) -> tuple[Acted, TrialState]:
        distribution, values, state = self.distribution(state, observations)
        actions = distribution.sample(noise.to(values.dtype))
        return Acted(actions, distribution.log_prob(actions), values), state

    def observe(
        self, state: TrialState, actions: Tensor, rewards: Tensor, terminated: Tensor, truncated: Tensor
    ) -> TrialState:
        done = terminated | truncated
        over = state.over
        return TrialState(
            memory=state.memory,
            action=torch.where(over.unsqueeze(-1), state.action, self._encoded(actions, state.action.dtype)),
            reward=torch.where(over, state.reward, rewards.to(state.reward.dtype)),
            done=torch.where(over, state.done, done.to(state.done.dtype)),
            over=over | done,
        )

    def prepare(self, data: Trajectories) -> Trajectories:
        return data

    def adapt(self, state: TrialState, support: Trajectories, *, step: int, differentiable: bool = False) -> TrialState:
        """The state after the trajectories of `support`, ready for the next ones.

        It is the final state of the collection. If the data was changed since, `support.state` is None, and the memory
        goes through the trajectories again.
        """
        if differentiable:
            raise ValueError("RL2 adapts by its memory, which cannot be differentiated")
        with torch.no_grad():
            after: TrialState = self._replayed(state, support) if support.state is None else support.state
        return after._replace(over=torch.zeros_like(after.over))

    def score(self, state: TrialState, query: Trajectories) -> Tensor:
        return query.mean_returns()

    def meta_update(self, episodes: Episodes[TrialState, Trajectories]) -> dict[str, float]:
        """Several epochs of PPO on the iteration's trials."""
        trials, values = self.trials((*episodes.support, episodes.query))
        config = self.config
        left = schedule_left(config.schedule_iterations, self._updates)
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * left
        order = torch.Generator().manual_seed(self._shuffle_seed + self._updates)
        logged = [step for _ in range(config.epochs) for step in self.epoch(trials, order=order, left=left)]
        self._updates += 1
        self._elsewhere = None
        metrics = {name: float(torch.stack([step[name] for step in logged]).mean()) for name in logged[0]}
        spread = variance_of_live(trials.returns, trials.mask).clamp_min(1e-12)  # zero if all rewards were zero
        unexplained = variance_of_live(trials.returns - values, trials.mask) / spread
        metrics |= {"explained_variance": float(1.0 - unexplained), "learning_rate": config.learning_rate * left}
        metrics |= action_std(self.parameters)
        if self.normalizer is not None:  # after the update, which needs the statistics of the collection
            for part in (*episodes.support, episodes.query):
                self.normalizer.update(part.observations, part.mask)
        return metrics

    def epoch(self, trials: Trials, *, order: torch.Generator, left: float = 1.0) -> list[dict[str, Tensor]]:
        """One pass over the trials in random order; returns the metrics of each of its steps.

        Args:
            trials: of an iteration.
            order: draws the order of the trials.
            left: share of the schedule that is left.
        """
        num_trials = trials.mask.shape[0]
        shuffled = torch.randperm(num_trials, generator=order).to(trials.mask.device)
        minibatches = shuffled.tensor_split(min(self.config.num_minibatches, num_trials))
        return [self._step(Trials(*(field[rows] for field in trials)), left) for rows in minibatches]

    def _step(self, trials: Trials, left: float) -> dict[str, Tensor]:
        """One step of Adam on a minibatch; returns its metrics."""
        weight = 1.0 / trials.mask.sum().clamp_min(1.0)
        limit = max(1, self.config.chunk_steps // trials.mask.shape[1])
        parts = over_chunks(lambda part: self._gradients(part, weight, left), trials, chunk_size=limit)
        gradients, logged = tree_map(lambda part: part.sum(0), parts)
        for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self._optimizer.step()
        return {**logged, "gradient_norm": norm}

    def _gradients(self, trials: Trials, weight: Tensor, left: float) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of `weight` times the sum over live steps of PPO's loss, and metrics, all with a first axis of
        length 1."""
        config = self.config
        with torch.enable_grad():
            outputs = self.network.memory(trials.inputs)
            distribution, values = self.network.heads(outputs)
            log_ratio = distribution.log_prob(trials.actions) - trials.log_probs
            ratio = log_ratio.exp()
            gain = clipped_gain(ratio, trials.advantages, config.clip_range)
            error = (values - trials.returns / self.value_scale).square()
            entropy = distribution.entropy()
            per_step = -gain + config.value_coef * error - config.entropy_coef * left * entropy
            predicted = self.network.predicted_rewards(outputs, self._encoded(trials.actions, outputs.dtype))
            if predicted is not None:
                prediction_error = (predicted - trials.rewards).square()
                per_step = per_step + config.prediction_coef * prediction_error
            total = (per_step * trials.mask).sum() * weight
            gradients = torch.autograd.grad(total, list(self.network.parameters()))
        with torch.no_grad():
            steps = {
                "policy_gradient_loss": -gain,
                "value_loss": error,
                "entropy_loss": -entropy,
                "approx_kl": (ratio - 1.0) - log_ratio,
                "clip_fraction": ((ratio - 1.0).abs() > config.clip_range).to(ratio.dtype),
            }
            if predicted is not None:
                steps["prediction_loss"] = prediction_error
            logged = {name: ((value * trials.mask).sum() * weight).unsqueeze(0) for name, value in steps.items()}
        return tuple(gradient.unsqueeze(0) for gradient in gradients), logged

    def trials(self, parts: tuple[Trajectories, ...]) -> tuple[Trials, Tensor]:
        """The trials that consist of the trajectories `parts`, one after another, and the values while acting, [R, T].

        Moves `value_scale` towards the scale of the returns.
        """
        data = join_trials(parts)
        actions = self._encoded(data.actions, data.rewards.dtype)
        before = (delayed(field) for field in (actions, data.rewards, data.done))
        returns, advantages = self._advantages(data, last_values=self._last_values(parts))
        trials = Trials(
            inputs=memory_inputs(self._seen(data.observations), *before),
            actions=data.actions,
            log_probs=data.log_probs,
            advantages=standardize(advantages[None], data.mask[None])[0],
            returns=returns,
            rewards=standardize(data.rewards[None], data.mask[None])[0],
            mask=data.mask,
        )
        return trials, data.values

    def _advantages(self, data: TrialData, *, last_values: Tensor) -> tuple[Tensor, Tensor]:
        """The targets of the value, and the advantages. Moves `value_scale` towards the scale of the returns."""
        gamma, mask = self.config.gamma, data.mask
        returns = discounted_returns(data.rewards, mask, gamma=gamma, last_return=last_values)
        scale = float(mean_of_live(returns.square(), mask).sqrt()) + 1e-3
        self.value_scale = scale if self.value_scale == 0.0 else 0.9 * self.value_scale + 0.1 * scale
        advantages = generalized_advantages(
            data.rewards, data.values, mask, gamma=gamma, gae_lambda=self.config.gae_lambda, last_values=last_values
        )
        return advantages + data.values, advantages

    def _last_values(self, parts: tuple[Trajectories, ...]) -> Tensor:
        """The value after the last step of each trial, [R].

        It is zero without `bootstrap`, if the MDP terminated, or if a trajectory of the trial diverged: its data then
        stop before its end.
        The critic gets done = 0, as if the trajectory continued: in training, done = 1 comes only with the first
        observation of a trajectory.
        """
        last = parts[-1]
        ends = torch.zeros_like(last.rewards[..., 0]).flatten()
        if not self.config.bootstrap:
            return ends
        state: TrialState = last.state
        goes_on = state._replace(done=torch.zeros_like(state.done), over=torch.zeros_like(state.over))
        with torch.no_grad():
            _, values, _ = self.distribution(goes_on, last.last_observations)
        diverged = torch.stack([part.diverged for part in parts]).any(0)
        truncated = last.truncated.any(-1) & ~diverged
        return torch.where(truncated.flatten(), values.flatten(), ends)

    def _replayed(self, state: TrialState, data: Trajectories) -> TrialState:
        """The state after the trajectories `data`. Another policy may have chosen their actions."""
        state = state.widened(data.rewards.shape[1])
        for t in range(data.rewards.shape[2]):
            live = data.mask[:, :, t] > 0
            if not bool(live.any()):
                break
            noise = torch.zeros_like(data.actions[:, :, t], dtype=data.rewards.dtype)
            state = state._replace(over=~live)
            _, state = self.act(state, data.observations[:, :, t], noise)
            feedback = (field[:, :, t] for field in (data.actions, data.rewards, data.terminated, data.truncated))
            state = self.observe(state, *feedback)
        return state

    def _seen(self, observations: Tensor) -> Tensor:
        return observations if self.normalizer is None else self.normalizer(observations)

    def _encoded(self, actions: Tensor, dtype: torch.dtype) -> Tensor:
        if not self.spaces.discrete:
            return actions.to(dtype)
        return nn.functional.one_hot(actions, self.spaces.action_size).to(dtype)

    def _network_on(self, device: torch.device) -> RecurrentPolicy:
        """The network on `device`; a copy, if the policy learns on another device."""
        if device == self.device:
            return self.network
        if self._elsewhere is None or self._elsewhere.policy.weight.device != device:
            self._elsewhere = copy.deepcopy(self.network).to(device)
        return self._elsewhere

    def _make_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate, eps=1e-5)
