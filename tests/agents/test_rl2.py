"""RL²: what the memory keeps across trajectories and trials, and PPO's loss against its definition."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from metarl.agents.rl2 import RL2, RL2Config
from metarl.core.config import TrainerConfig
from metarl.core.controls import adaptation_controls
from metarl.core.data import Episodes, Trajectories
from metarl.core.episode import run_episodes
from metarl.core.errors import InputError
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split
from metarl.core.trainer import Trainer
from metarl.core.trees import tree_zip
from metarl.envs.point_nav import PointNav
from metarl.envs.vector import TaskBatchEnv
from metarl.rl.rollout import RolloutCollector
from metarl.rl.tasks import EnvTaskDistribution
from metarl.rl.trials import Trials, TrialState

MEMORIES = pytest.mark.parametrize("memory", ["lstm", "gru", "transformer", "mann"])


@dataclass(frozen=True)
class Door:
    """The first action that is rewarded on the last step, and the step after which the MDP ends."""

    right: int
    length: int


class DoorsEnv(TaskBatchEnv):
    """The first action chooses a door. The last step has reward 1 for the right door. Observations show the time."""

    default_task = Door(0, 3)

    def __init__(self, num_envs: int, *, horizon: int) -> None:
        super().__init__(num_envs, Box(0.0, 1.0, (1,), np.float32), Discrete(2), horizon=horizon)
        self._right, self._length = np.zeros((2, num_envs), int)
        self._opened = np.zeros(num_envs, bool)

    def _assign_tasks(self, ids: Any, tasks: Sequence[Door]) -> None:
        self._right[ids] = [task.right for task in tasks]
        self._length[ids] = [task.length for task in tasks]

    def _reset(self, ids: Any, rngs: Any) -> None:
        self._opened[ids] = False

    def _advance(self, actions: Any, ids: Any) -> tuple[Any, Any, Any]:
        first = self._elapsed[ids] == 0
        self._opened[ids] = np.where(first, actions == self._right[ids], self._opened[ids])
        last = self._elapsed[ids] + 1 >= np.minimum(self._length[ids], self.horizon)
        return (last & self._opened[ids]).astype(float), self._elapsed[ids] + 1 >= self._length[ids], False

    def _observe(self) -> Any:
        return (self._elapsed[:, None] / self.horizon).astype(np.float32)


@dataclass(frozen=True)
class Doors(EnvTaskDistribution[Door]):
    """Trajectories of length 1 to `longest`: those longer than the horizon are truncated, the others terminate."""

    horizon: int = 3
    shortest: int = 1
    longest: int = 5

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Door]:
        lengths = rng.integers(self.shortest, self.longest + 1, num_tasks)
        return [
            Door(int(right), int(length))
            for right, length in zip(rng.integers(2, size=num_tasks), lengths, strict=True)
        ]

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> DoorsEnv:
        return DoorsEnv(num_envs, horizon=self.horizon)


def learner_for(family: EnvTaskDistribution[Any], *, double: bool = True, **settings: Any) -> tuple[RL2, Any]:
    few = {"trajectories_per_trial": 3, "num_trajectories": 4, "hidden_size": 8, "output_gain": 1.0}
    config = RL2Config(**{**few, **settings})
    collector = RolloutCollector(family, num_trajectories=config.num_trajectories)
    learner = RL2(config, collector.spaces, generator=torch.Generator().manual_seed(0))
    if double:
        learner.network.double()
    return learner, collector


def collected(learner: RL2, collector: Any, family: Any, *, num_tasks: int = 5, seed: int = 0) -> Episodes[Any, Any]:
    tasks = family.sample(num_tasks, np.random.default_rng(seed))
    steps = learner.num_adaptation_steps
    return run_episodes(learner, collector, tasks, Seeds.first(num_tasks, seed=seed), num_steps=steps)


def parts_of(episodes: Episodes[Any, Any]) -> tuple[Trajectories, ...]:
    return (*episodes.support, episodes.query)


def require_replay(learner: RL2, episodes: Episodes[Any, Any]) -> None:
    """On whole trials, the update computes the same log-probabilities and values as acting."""
    scale = learner.value_scale
    trials, values = learner.trials(parts_of(episodes))
    live = trials.mask > 0
    assert 0 < int(live.sum()) == episodes.num_steps
    with torch.no_grad():
        inputs = trials.inputs.to(learner.network.policy.weight.dtype)
        distribution, replayed = learner.network.heads(learner.network.memory(inputs))
        log_probs = distribution.log_prob(trials.actions).float()
    torch.testing.assert_close(log_probs[live], trials.log_probs[live], rtol=0, atol=1e-5)
    torch.testing.assert_close((replayed * scale).float()[live], values[live], rtol=0, atol=1e-5)
    learner.value_scale = scale


@MEMORIES
@pytest.mark.parametrize("family", [Doors(), PointNav(horizon=4)], ids=["discrete", "continuous"])
@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
def test_the_replay_gives_the_acting_probabilities_and_values(memory: Any, family: Any, double: bool) -> None:
    learner, collector = learner_for(family, memory=memory, double=double)
    learner.value_scale = 2.0
    require_replay(learner, collected(learner, collector, family))


def test_a_trajectory_begins_knowing_how_the_last_one_ended() -> None:
    family = Doors(shortest=1, longest=5)
    learner, collector = learner_for(family)
    episodes = collected(learner, collector, family, num_tasks=12)
    parts = parts_of(episodes)
    trials, _ = learner.trials(parts)
    assert not trials.inputs[:, 0, 1:].any()  # nothing comes before a trial
    row = 0
    for task in range(12):
        for trial in range(4):
            place = 0
            for before, after in itertools.pairwise(parts):
                last = int(before.mask[task, trial].sum()) - 1
                place += last + 1
                action = torch.nn.functional.one_hot(before.actions[task, trial, last], 2)
                first = torch.cat(
                    [after.observations[task, trial, 0], action, before.rewards[task, trial, last : last + 1]]
                )
                assert trials.inputs[row, place].tolist() == [*first.tolist(), 1.0]
                assert trials.inputs[row, place - last : place, -1].sum() == 0.0  # and inside, nothing ends
            row += 1
    assert any(part.terminated.any() for part in parts)
    assert any(part.truncated.any() for part in parts)
    assert max(float(part.rewards.max()) for part in parts) == 1.0


@MEMORIES
def test_a_trial_does_not_hang_on_its_neighbours(memory: Any) -> None:
    """Short trajectories wait for the long ones of the batch; meanwhile their memory must not change."""
    family = Doors(horizon=5)
    learner, collector = learner_for(family, memory=memory)
    short, long = Door(1, 1), Door(0, 5)

    def state_of(tasks: list[Door]) -> TrialState:
        seeds = Seeds.first(len(tasks))
        state: TrialState = run_episodes(learner, collector, tasks, seeds, num_steps=2).query.state
        return state

    alone, beside = state_of([short]), state_of([short, long])
    for part, other in zip(alone.memory, beside.memory, strict=True):
        if memory == "transformer" and part.dim() > 3:
            other = other[..., : part.shape[-2], :]
        torch.testing.assert_close(part[0], other[0], rtol=1e-9, atol=1e-9)
    for part, other in zip(alone[1:], beside[1:], strict=True):
        assert torch.equal(part[0], other[0])


class Leaking(RL2):
    """Continues with the memory of earlier trials."""

    leaked: TrialState | None = None

    def begin(self, num_tasks: int, **settings: Any) -> TrialState:
        return super().begin(num_tasks, **settings) if self.leaked is None else self.leaked

    def observe(self, *arguments: Any) -> TrialState:
        self.leaked = super().observe(*arguments)
        return self.leaked


def test_a_memory_that_leaks_between_trials_is_caught() -> None:
    family = Doors()
    learner, collector = learner_for(family)
    first, second = (collected(learner, collector, family) for _ in range(2))
    assert torch.equal(first.query.log_probs, second.query.log_probs)
    require_replay(learner, second)
    learner.__class__ = Leaking
    collected(learner, collector, family)
    learner.leaked = learner.leaked._replace(over=torch.zeros_like(learner.leaked.over))  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        require_replay(learner, collected(learner, collector, family))


def test_what_a_task_is_told_can_be_changed_afterwards() -> None:
    """Acting and replaying the data give the same memory; without rewards it is another one."""
    for family in (Doors(), PointNav(horizon=3)):
        learner, collector = learner_for(family)
        episodes = collected(learner, collector, family)
        start = learner.begin(5)
        once = episodes.support[0]
        acted, relived = (learner.adapt(start, data, step=0) for data in (once, replace(once, state=None)))
        tree_zip(lambda pair: torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6), [acted, relived])
        silent = learner.adapt(start, once.without_signal(), step=0)
        assert not silent.reward.any()
        torch.testing.assert_close(silent.action, acted.action, rtol=1e-6, atol=1e-6)
        if isinstance(family, PointNav):  # it has rewards at every step, which change the memory
            assert not torch.allclose(silent.memory[0], acted.memory[0])


class TestAdvantages:
    """Rewards 1 on the last of two steps of each of two trajectories; values as given."""

    def trajectories(self, learner: RL2, *, terminated: bool, diverged: bool = False) -> Trajectories:
        flags = torch.tensor([[[False, True]]])
        none = torch.zeros_like(flags)
        start = learner.begin(1)
        state = start._replace(done=torch.ones_like(start.done), over=torch.ones_like(start.over))
        return Trajectories(
            observations=torch.zeros(1, 1, 2, 1),
            actions=torch.zeros(1, 1, 2, dtype=torch.int64),
            rewards=torch.tensor([[[0.0, 1.0]]]),
            terminated=flags if terminated else none,
            truncated=none if terminated else flags,
            mask=torch.ones(1, 1, 2),
            log_probs=torch.full((1, 1, 2), -0.7),
            last_observations=torch.ones(1, 1, 1),
            diverged=torch.tensor([[diverged]]),
            state=state,
            values=torch.tensor([[[0.5, 0.25]]]),
        )

    def setup_learner(self, **settings: Any) -> RL2:
        learner, _ = learner_for(Doors(), trajectories_per_trial=2, num_trajectories=1, double=False, **settings)
        learner.value_scale = 1.0
        return learner

    @pytest.mark.parametrize("terminated", [True, False])
    def test_returns_run_through_the_ends_inside_a_trial_and_stop_with_it(self, terminated: bool) -> None:
        learner = self.setup_learner(gamma=0.9, gae_lambda=0.8)
        part = self.trajectories(learner, terminated=terminated)
        trials, values = learner.trials((part, part))
        deltas = [0.9 * 0.25 - 0.5, 1 + 0.9 * 0.5 - 0.25, 0.9 * 0.25 - 0.5, 1 - 0.25]
        advantages = [sum(0.72 ** (later - t) * deltas[later] for later in range(t, 4)) for t in range(4)]
        expected = torch.tensor([advantages])
        assert values.tolist() == [[0.5, 0.25, 0.5, 0.25]]
        torch.testing.assert_close(trials.returns, values + expected)
        torch.testing.assert_close(trials.advantages, (expected - expected.mean()) / expected.std(correction=0))

    def test_bootstrapping_values_what_a_time_limit_cut_off_and_no_real_end(self) -> None:
        learner = self.setup_learner(gamma=1.0, gae_lambda=1.0, bootstrap=True)
        cut, ended = (self.trajectories(learner, terminated=terminated) for terminated in (False, True))
        with torch.no_grad():
            acted, _ = learner.act(learner.begin(1), torch.ones(1, 1, 1), torch.zeros(1, 1))
        assert acted.values is not None
        worth = float(acted.values)
        assert worth != 0.0
        for last, rest in ((cut, worth), (ended, 0.0)):
            trials, _ = learner.trials((ended, last))
            torch.testing.assert_close(trials.returns[0], torch.tensor([2.0, 2.0, 1.0, 1.0]) + rest)
        broken = self.trajectories(learner, terminated=False, diverged=True)
        for parts, returns in (((broken, cut), [1.0, 1.0]), ((cut, broken), [2.0, 2.0, 1.0, 1.0])):
            trials, _ = learner.trials(parts)
            torch.testing.assert_close(trials.returns[0], torch.tensor(returns))

    @MEMORIES
    def test_the_value_after_a_trial_is_asked_as_if_the_trajectory_went_on(self, memory: Any) -> None:
        """It is the value of one more step of the sequence that the network is trained on, without "done"."""
        family = Doors(horizon=3, shortest=2, longest=5)
        learner, collector = learner_for(family, memory=memory, bootstrap=True, gamma=1.0, gae_lambda=1.0)
        learner.value_scale = 2.0
        parts = parts_of(collected(learner, collector, family, num_tasks=6))
        trials, _ = learner.trials(parts)
        rewards = sum(part.rewards.flatten(0, 1).sum(-1) for part in parts)
        last, found = parts[-1], (trials.returns[:, 0] - rewards).double()
        truncated = last.truncated.any(-1).flatten()
        assert 0 < int(truncated.sum()) < len(truncated)
        torch.testing.assert_close(found[~truncated], torch.zeros_like(found[~truncated]), rtol=0, atol=1e-6)
        for row in truncated.nonzero().flatten().tolist():
            length, task, trial = int(trials.mask[row].sum()), row // 4, row % 4
            action = torch.nn.functional.one_hot(trials.actions[row, length - 1], 2)
            told = [last.rewards[task, trial, -1:], torch.zeros(1)]
            more = torch.cat([last.last_observations[task, trial], action, *told])
            inputs = torch.cat([trials.inputs[row, :length], more[None]]).double()
            with torch.no_grad():
                _, values = learner.network.heads(learner.network.memory(inputs[None]))
            torch.testing.assert_close(found[row], 2.0 * values[0, -1], rtol=1e-5, atol=1e-6)

    def test_nothing_is_learned_after_a_simulation_broke(self) -> None:
        learner = self.setup_learner()
        good, broken = (self.trajectories(learner, terminated=False, diverged=diverged) for diverged in (False, True))
        assert learner.trials((good, broken))[0].mask.tolist() == [[1.0] * 4]
        assert learner.trials((broken, good))[0].mask.tolist() == [[1.0] * 2]


def clipped_loss(learner: RL2, trials: Trials) -> Tensor:
    """PPO's loss written out, one live step after another."""
    config, terms = learner.config, []
    network = learner.network
    outputs = network.memory(trials.inputs)
    logits, values = network.policy(outputs), network.value(outputs)[..., 0]
    for row, t in (trials.mask > 0).nonzero().tolist():
        chosen = torch.distributions.Categorical(logits=logits[row, t])
        ratio = (chosen.log_prob(trials.actions[row, t]) - trials.log_probs[row, t]).exp()
        advantage = trials.advantages[row, t]
        bound = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
        error = (values[row, t] - trials.returns[row, t] / learner.value_scale) ** 2
        gain = min(ratio * advantage, bound * advantage)
        terms.append(-gain + config.value_coef * error - 0.5 * config.entropy_coef * chosen.entropy())
        if network.prediction is not None:
            action = torch.nn.functional.one_hot(trials.actions[row, t], 2).to(outputs.dtype)
            predicted = network.prediction(outputs[row, t]) @ torch.cat([action, action.new_ones(1)])
            terms[-1] = terms[-1] + config.prediction_coef * (predicted - trials.rewards[row, t]) ** 2
    return torch.stack(terms).mean()


@pytest.mark.parametrize("prediction_coef", [0.0, 0.4])
def test_the_gradient_is_that_of_the_clipped_loss_whatever_the_chunks(prediction_coef: float) -> None:
    family = Doors()
    settings = {"entropy_coef": 0.03, "value_coef": 0.7, "prediction_coef": prediction_coef, "learning_rate": 1e-30}
    learner, collector = learner_for(family, **settings)
    parts = parts_of(collected(learner, collector, family))
    trials, _ = learner.trials(parts)
    rewards = torch.cat([part.rewards[part.mask > 0] for part in parts])
    expected_rewards = (trials.inputs[..., -2] - rewards.mean()) / rewards.std(correction=0)  # an input one step later
    live = trials.mask[:, 1:] > 0
    torch.testing.assert_close(trials.rewards[:, :-1][live], expected_rewards[:, 1:][live].float())
    trials = Trials(*(field if field.dtype == torch.int64 else field.double() for field in trials))
    moved = trials.log_probs + 0.3 * torch.randn(trials.mask.shape, generator=torch.Generator().manual_seed(1))
    trials = trials._replace(log_probs=moved.double())  # so that some ratios are clipped
    expected = torch.autograd.grad(clipped_loss(learner, trials), list(learner.network.parameters()))
    found: list[Tensor] = []
    for chunk_steps in (1, 40, 10_000):
        learner.config = replace(learner.config, chunk_steps=chunk_steps, max_grad_norm=1e9, num_minibatches=1)
        (logged,) = learner.epoch(trials, order=torch.Generator().manual_seed(2), left=0.5)
        assert 0.0 < float(logged["clip_fraction"]) < 1.0
        for parameter, gradient in zip(learner.network.parameters(), expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-10)
        found.append(logged["approx_kl"])
    torch.testing.assert_close(found[0], found[2])


def test_a_sparse_reward_of_the_last_step_is_exploited_in_the_next_trajectory() -> None:
    """The first guess of the door is right with probability 0.5; after it, the return is 1. Without rewards: 0.5."""
    family = Doors(horizon=3, shortest=3, longest=3)
    settings: dict[str, Any] = {"trajectories_per_trial": 2, "num_trajectories": 1, "learning_rate": 1e-2}
    learner, collector = learner_for(family, double=False, hidden_size=16, **settings)
    trainer = Trainer(learner, collector, family, TrainerConfig(iterations=40, meta_batch_size=200))
    for _ in range(40):
        progressed = trainer.train_iteration()
    first, second = (float(score.mean()) for score in progressed.episodes.scores)
    assert abs(first - 0.5) < 0.12  # 200 trials: 3.4 standard errors
    assert second > 0.9
    controls = adaptation_controls(learner, collector, [Door(0, 3), Door(1, 3)], num_replicates=50)
    matrix = np.asarray(controls["matrix"])
    assert np.diag(matrix).min() > 0.9
    assert max(matrix[0, 1], matrix[1, 0]) < 0.1
    assert np.mean(controls["zero_reward"]) < 0.65  # without a reward, it takes the other door or guesses


def test_the_step_size_falls_to_zero_on_schedule() -> None:
    family = Doors()
    learner, collector = learner_for(family, double=False, schedule_iterations=3, learning_rate=0.3)
    rates = [learner.meta_update(collected(learner, collector, family))["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([0.3, 0.2, 0.1, 0.0])


def test_trials_without_any_reward_are_no_reason_to_undo_an_update() -> None:
    family = Doors()
    learner, collector = learner_for(family, double=False, prediction_coef=0.5)
    episodes = collected(learner, collector, family)
    silent = [replace(part, rewards=torch.zeros_like(part.rewards)) for part in parts_of(episodes)]
    metrics = learner.meta_update(replace(episodes, support=tuple(silent[:-1]), query=silent[-1]))
    assert np.isfinite(list(metrics.values())).all()


def test_state_round_trip_and_a_misfit() -> None:
    family = Doors()
    first, collector = learner_for(family, double=False)
    first.meta_update(collected(first, collector, family))
    second, _ = learner_for(family, double=False)
    second.load_state_dict(first.state_dict())
    for learner in (first, second):
        learner.meta_update(collected(learner, collector, family, seed=1))
    assert all(map(torch.equal, first.parameters.values(), second.parameters.values()))
    assert first.state_dict()["value_scale"] == second.state_dict()["value_scale"]
    other, _ = learner_for(family, hidden_size=9)
    with pytest.raises(ValueError, match="do not fit"):
        other.load_state_dict(first.state_dict())
    state = first.state_dict()
    state["optimizer"] = {0: {**state["optimizer"][0], "exp_avg": torch.zeros(3)}}
    with pytest.raises(ValueError, match="moments do not fit the network: exp_avg of parameter 0"):
        second.load_state_dict(state)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"memory": "lsmt"}, "agent.memory = 'lsmt': must be one of 'lstm'"),
        ({"trajectories_per_trial": 0}, "agent.trajectories_per_trial = 0"),
        ({"gamma": 1.1}, r"agent.gamma = 1.1: must be a number from 0 to 1"),
        ({"clip_range": 0.0}, "agent.clip_range = 0.0"),
        ({"schedule_iterations": 0}, "agent.schedule_iterations = 0"),
        ({"memory": "transformer", "hidden_size": 12}, "agent.hidden_size = 12: must be a multiple of 8 with memory"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RL2Config(**setting)
