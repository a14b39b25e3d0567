"""RL²: a memory that learns to learn, trained by proximal policy optimisation over whole trials.

Yan Duan, John Schulman, Xi Chen, Peter L. Bartlett, Ilya Sutskever, Pieter Abbeel: RL²: Fast Reinforcement Learning via
Slow Reinforcement Learning. 2016, arXiv:1611.02779. (The same idea: Wang et al. 2016, arXiv:1611.05763.)

A trial is several trajectories of one task in a row. Besides the observation, the policy sees the action, reward and
done flag before it, those of a trajectory's last step too; its memory is cleared when a trial begins and at no other
time. To the memory, the end of a trajectory is an event inside the trial: returns and advantages run through it.

Differs from the paper: PPO (Schulman et al. 2017, arXiv:1707.06347) instead of TRPO, an LSTM by default instead of a
GRU, and the value is a second head of the policy's own memory. Options that the paper does not have: a transformer or a
memory-augmented network as memory, and an auxiliary loss that predicts rewards.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from metarl.core.config import LearnerConfig, TrainerConfig
from metarl.core.data import Episodes, Trajectories, live_first
from metarl.core.errors import require
from metarl.core.learner import Acted, ScoreName, Spaces, Traits, loaded
from metarl.core.trees import to_device, tree_map
from metarl.gradients.lifting import over_chunks
from metarl.networks.memories import Memory, MemoryName, make_memory
from metarl.networks.policies import Categorical, Distribution, Gaussian
from metarl.rl.normalization import Normalizer, load_state_of, state_of
from metarl.rl.returns import discounted_returns, generalized_advantages, standardize

MIN_LOG_STD = math.log(1e-6)


@dataclass(frozen=True)
class RL2Config(LearnerConfig):
    """Settings of RL²."""

    memory: MemoryName = "lstm"
    """What carries experience from step to step: lstm, gru, transformer, or mann (memory-augmented network)."""
    hidden_size: int = 64
    """Width of the memory."""
    trajectories_per_trial: int = 2
    """Trajectories of one task in a row, which the memory spans."""
    num_trajectories: int = 20
    """Trials of each task side by side."""
    learning_rate: float = 1e-3
    """Adam's step size at the start."""
    schedule_iterations: int | None = None
    """Iterations in which the step size and the entropy bonus fall to zero linearly, >= 1; None keeps them."""
    epochs: int = 5
    """Passes over an iteration's trials."""
    num_minibatches: int = 4
    """Parts of a pass, of whole trials in random order."""
    clip_range: float = 0.2
    """PPO's bound on the change of a probability ratio."""
    gamma: float = 0.99
    """Discount along the trial, in [0, 1]."""
    gae_lambda: float = 0.95
    """Generalised advantage estimation along the trial, in [0, 1]."""
    bootstrap: bool = False
    """Value the end of a truncated last trajectory by the critic; otherwise nothing comes after the trial."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus at the start; it falls with the step size."""
    prediction_coef: float = 0.0
    """Weight of an auxiliary loss: a third head, linear in the action, predicts the next reward, so that the memory
    learns to keep what it was told. 0 leaves it out, as the paper does."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    output_gain: float = 0.01
    """Factor on the policy head's Xavier-uniform initial weights; smaller starts nearer to uniform actions."""
    initial_std: float = 1.0
    """Standard deviation of continuous actions at the start, in the policy's units."""
    chunk_steps: int = 12_500
    """Steps of data per pass at most (one trial at least); the passes of a minibatch run side by side."""
    normalize_observations: bool = False
    """Subtract the running mean of the observations, divide by their standard deviation, and clip to [-10, 10]. Use
    it if observations are much larger or smaller than 1. The statistics change only after a meta-update."""

    def __post_init__(self) -> None:
        kinds = ("lstm", "gru", "transformer", "mann")
        require(self.memory in kinds, "agent.memory", self.memory, "one of " + ", ".join(map(repr, kinds)))
        counts = "hidden_size trajectories_per_trial num_trajectories epochs num_minibatches chunk_steps"
        for name in counts.split():
            require(getattr(self, name) >= 1, f"agent.{name}", getattr(self, name), "an integer >= 1")
        fits = self.memory != "transformer" or self.hidden_size % 8 == 0
        require(fits, "agent.hidden_size", self.hidden_size, "a multiple of 8 with memory 'transformer'")
        horizon = self.schedule_iterations
        require(horizon is None or horizon >= 1, "agent.schedule_iterations", horizon, "an integer >= 1")
        for name in ("gamma", "gae_lambda"):
            require(0.0 <= getattr(self, name) <= 1.0, f"agent.{name}", getattr(self, name), "in [0, 1]")
        for name in ("learning_rate", "clip_range", "max_grad_norm", "output_gain", "initial_std"):
            require(0.0 < getattr(self, name) < math.inf, f"agent.{name}", getattr(self, name), "a positive number")
        for name in ("value_coef", "entropy_coef", "prediction_coef"):
            require(0.0 <= getattr(self, name) < math.inf, f"agent.{name}", getattr(self, name), "a number >= 0")

    def check_trainer(self, trainer: TrainerConfig) -> None:
        """Refuses a run in which iterations would learn nothing.

        Raises:
            InputError: with the setting to change.
        """
        schedule = self.schedule_iterations
        allowed = f"at most agent.schedule_iterations = {schedule}: beyond it, nothing is learned"
        require(schedule is None or trainer.iterations <= schedule, "trainer.iterations", trainer.iterations, allowed)


class TrialState(NamedTuple):
    """What a trial has been so far: N tasks, K trials each (1 before the first step stands for any number).

    Attributes:
        memory: the memory's own state, each [N, K, ...].
        action: [N, K, action_size], the action before; one-hot where discrete, zero before the first.
        reward: [N, K], what followed it.
        done: [N, K], 1 where it ended a trajectory.
        over: [N, K] bool, the present trajectory has ended: nothing changes until the next one.
    """

    memory: tuple[Tensor, ...]
    action: Tensor
    reward: Tensor
    done: Tensor
    over: Tensor


class Trials(NamedTuple):
    """Whole trials as sequences, R in all, live steps first, T the largest number of live steps.

    Attributes:
        inputs: [R, T, input_size].
        actions: [R, T, action_size] or [R, T].
        log_probs: [R, T], under the policy that acted.
        advantages: [R, T], standardised over all live steps.
        returns: [R, T], the value's targets.
        rewards: [R, T], standardised over all live steps.
        mask: [R, T].
    """

    inputs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    rewards: Tensor
    mask: Tensor


class RecurrentPolicy(nn.Module):
    """A memory with a policy head, a value head and, where asked for, one that predicts rewards."""

    def __init__(self, config: RL2Config, spaces: Spaces, *, generator: torch.Generator) -> None:
        super().__init__()
        input_size = spaces.observation_size + spaces.action_size + 2
        self.memory: Memory = make_memory(config.memory, input_size, config.hidden_size, generator=generator)
        self.policy = nn.Linear(self.memory.output_size, spaces.action_size)
        self.value = nn.Linear(self.memory.output_size, 1)
        for head, gain in ((self.policy, config.output_gain), (self.value, 1.0)):
            nn.init.xavier_uniform_(head.weight, gain=gain, generator=generator)
            nn.init.zeros_(head.bias)
        if not spaces.discrete:
            self.log_std = nn.Parameter(torch.full((spaces.action_size,), math.log(config.initial_std)))
        self.discrete = spaces.discrete
        self.prediction: nn.Linear | None = None
        if config.prediction_coef > 0.0:
            self.prediction = nn.Linear(self.memory.output_size, spaces.action_size + 1)
            nn.init.xavier_uniform_(self.prediction.weight, generator=generator)
            nn.init.zeros_(self.prediction.bias)

    def heads(self, outputs: Tensor) -> tuple[Distribution, Tensor]:
        """Action distribution and value, in units of `RL2`'s value scale, for the memory's outputs [..., O]."""
        raw = self.policy(outputs)
        distribution = Categorical(raw) if self.discrete else Gaussian(raw, self.log_std.clamp_min(MIN_LOG_STD))
        return distribution, self.value(outputs).squeeze(-1)


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
        self.network = RecurrentPolicy(config, spaces, generator=generator)
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
        _require_moments(moments, list(own.values()))
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
        """Of the next actions, the values [N, K], and the state that has seen `observations` [N, K, ...]."""
        network = self._network_on(observations.device)
        state, size = _widened(state, observations.shape[1]), observations.shape[:2]
        inputs = _inputs(self._seen(observations.to(state.action.dtype)), state.action, state.reward, state.done)
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
        """The memory after the trajectories of `support`, ready for the next ones.

        The memory that collected them has it already; where the data was changed since, they are lived through again.
        """
        if differentiable:
            raise ValueError("RL2 adapts by remembering: there is nothing to differentiate")
        with torch.no_grad():
            after: TrialState = self._relived(state, support) if support.state is None else support.state
        return after._replace(over=torch.zeros_like(after.over))

    def score(self, state: TrialState, query: Trajectories) -> Tensor:
        return query.mean_returns()

    def meta_update(self, episodes: Episodes[TrialState, Trajectories]) -> dict[str, float]:
        """Several epochs of PPO on the iteration's trials."""
        trials, values = self.trials((*episodes.support, episodes.query))
        config = self.config
        left = 1.0 if config.schedule_iterations is None else max(0.0, 1.0 - self._updates / config.schedule_iterations)
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * left
        order = torch.Generator().manual_seed(self._shuffle_seed + self._updates)
        logged = [step for _ in range(config.epochs) for step in self.epoch(trials, order=order, left=left)]
        self._updates += 1
        self._elsewhere = None
        metrics = {name: float(torch.stack([step[name] for step in logged]).mean()) for name in logged[0]}
        spread = _variance(trials.returns, trials.mask).clamp_min(1e-12)  # where nothing was ever paid, nothing varies
        unexplained = _variance(trials.returns - values, trials.mask) / spread
        metrics |= {"explained_variance": float(1.0 - unexplained), "learning_rate": config.learning_rate * left}
        if not self.spaces.discrete:
            metrics["std"] = float(self.parameters["log_std"].exp().mean())
        if self.normalizer is not None:  # last: the update needs the statistics of the collection
            for part in (*episodes.support, episodes.query):
                self.normalizer.update(part.observations, part.mask)
        return metrics

    def epoch(self, trials: Trials, *, order: torch.Generator, left: float = 1.0) -> list[dict[str, Tensor]]:
        """One pass over the trials, shuffled whole; what to log of each of its steps.

        Args:
            trials: of an iteration.
            order: shuffles them.
            left: share of the schedule that is to come.
        """
        num_trials = trials.mask.shape[0]
        shuffled = torch.randperm(num_trials, generator=order).to(trials.mask.device)
        minibatches = shuffled.tensor_split(min(self.config.num_minibatches, num_trials))
        return [self._step(Trials(*(field[rows] for field in trials)), left) for rows in minibatches]

    def _step(self, trials: Trials, left: float) -> dict[str, Tensor]:
        """One step of Adam on a minibatch, `left` of the schedule to come; returns what to log."""
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
        """Of `weight` times the sum over live steps of PPO's loss, each with an axis of length one in front."""
        config = self.config
        with torch.enable_grad():
            outputs = self.network.memory(trials.inputs)
            distribution, values = self.network.heads(outputs)
            log_ratio = distribution.log_prob(trials.actions) - trials.log_probs
            ratio = log_ratio.exp()
            clipped = ratio.clamp(1.0 - config.clip_range, 1.0 + config.clip_range)
            gain = torch.minimum(ratio * trials.advantages, clipped * trials.advantages)
            error = (values - trials.returns / self.value_scale).square()
            entropy = distribution.entropy()
            per_step = -gain + config.value_coef * error - config.entropy_coef * left * entropy
            surprise = self._surprise(outputs, trials)
            if surprise is not None:
                per_step = per_step + config.prediction_coef * surprise
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
            if surprise is not None:
                steps["prediction_loss"] = surprise
            logged = {name: ((value * trials.mask).sum() * weight).unsqueeze(0) for name, value in steps.items()}
        return tuple(gradient.unsqueeze(0) for gradient in gradients), logged

    def _surprise(self, outputs: Tensor, trials: Trials) -> Tensor | None:
        """Squared error of the predicted rewards, [R, T], in units of their variance."""
        if self.network.prediction is None:
            return None
        weights, bias = self.network.prediction(outputs).tensor_split([-1], dim=-1)
        predicted: Tensor = (weights * self._encoded(trials.actions, outputs.dtype)).sum(-1) + bias.squeeze(-1)
        return (predicted - trials.rewards).square()

    def trials(self, parts: tuple[Trajectories, ...]) -> tuple[Trials, Tensor]:
        """The trials that consist of the trajectories `parts`, one after another, and the values while acting, [R, T].

        Moves `value_scale` towards that of the returns.
        """

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts], dim=2).flatten(0, 1)

        diverged = torch.stack([part.diverged.flatten() for part in parts])
        broken = diverged.cumsum(0) - diverged.to(torch.int64) > 0  # the memory has seen a step that is not in the data
        kept = [part.mask.flatten(0, 1) * ~late.unsqueeze(1) for part, late in zip(parts, broken, strict=True)]
        mask = torch.cat(kept, dim=1)
        packed = live_first(mask)
        mask, actions, rewards = packed(mask), packed(joined("actions")), packed(joined("rewards"))
        observations, values = packed(joined("observations")), packed(joined("values"))
        done = packed((joined("terminated") | joined("truncated")).to(rewards.dtype))
        before = (_after_one(field) for field in (self._encoded(actions, rewards.dtype), rewards, done))
        returns, advantages = self._advantages(rewards, values, mask, last_values=self._last_values(parts))
        trials = Trials(
            inputs=_inputs(self._seen(observations), *before),
            actions=actions,
            log_probs=packed(joined("log_probs")),
            advantages=standardize(advantages[None], mask[None])[0],
            returns=returns,
            rewards=standardize(rewards[None], mask[None])[0],
            mask=mask,
        )
        return trials, values

    def _advantages(
        self, rewards: Tensor, values: Tensor, mask: Tensor, *, last_values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The value's targets and the advantages; moves the value's scale towards that of the returns."""
        config = self.config
        returns = discounted_returns(rewards, mask, gamma=config.gamma, last_return=last_values)
        scale = float(_mean(returns.square(), mask).sqrt()) + 1e-3
        self.value_scale = scale if self.value_scale == 0.0 else 0.9 * self.value_scale + 0.1 * scale
        advantages = generalized_advantages(
            rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda, last_values=last_values
        )
        return advantages + values, advantages

    def _last_values(self, parts: tuple[Trajectories, ...]) -> Tensor:
        """The value after the last step of each trial, [R].

        It is zero after an end of the MDP, and in a trial with a diverged trajectory, whose data stop before the end.
        The critic is asked as if the trajectory went on: it has seen "done" only beside the first observation of a
        trajectory.
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

    def _relived(self, state: TrialState, data: Trajectories) -> TrialState:
        """The state after `data`, whoever acted in it."""
        state = _widened(state, data.rewards.shape[1])
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
        """The network where acting happens: a copy if that is not where it learns."""
        if device == self.device:
            return self.network
        if self._elsewhere is None or self._elsewhere.policy.weight.device != device:
            self._elsewhere = copy.deepcopy(self.network).to(device)
        return self._elsewhere

    def _make_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate, eps=1e-5)


def _widened(state: TrialState, num_trials: int) -> TrialState:
    """`state`, with the trials of each task spelled out."""
    if state.over.shape[1] == num_trials:
        return state
    return tree_map(lambda part: part.expand(part.shape[0], num_trials, *part.shape[2:]), state)


def _inputs(observations: Tensor, actions: Tensor, rewards: Tensor, done: Tensor) -> Tensor:
    return torch.cat([observations, actions, rewards.unsqueeze(-1), done.unsqueeze(-1)], dim=-1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over all live steps."""
    return (values * mask).sum() / mask.sum().clamp_min(1.0)


def _variance(values: Tensor, mask: Tensor) -> Tensor:
    return _mean((values - _mean(values, mask)).square(), mask)


def _after_one(values: Tensor) -> Tensor:
    """`values` [R, T, ...] one step later, zero first."""
    return torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=1)


def _require_moments(moments: Mapping[int, Mapping[str, Any]], parameters: Sequence[Tensor]) -> None:
    """Raises ValueError unless Adam's saved `moments`, by parameter number, have the shapes of `parameters`."""
    for number, kept in moments.items():
        like = (parameters[number].shape, parameters[number].dtype)
        float(kept["step"])
        odd = [name for name in ("exp_avg", "exp_avg_sq") if (kept[name].shape, kept[name].dtype) != like]
        if odd:
            raise ValueError(f"moments do not fit the network: {odd[0]} of parameter {number}: another shape or dtype")
