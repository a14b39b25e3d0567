"""Collection: whole trajectories, honest ends, and numbers that depend on slots alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from torch import Tensor

from metarl.agents.maml import MAML, MAMLConfig
from metarl.core.data import Trajectories
from metarl.core.errors import EnvironmentFaultError
from metarl.core.learner import Acted, Spaces
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split
from metarl.envs.half_cheetah import HalfCheetahDir, HalfCheetahDirEnv
from metarl.envs.vector import TaskBatchEnv
from metarl.rl.rollout import RolloutCollector, one_torch_thread
from metarl.rl.tasks import EnvTaskDistribution, TaskVectorEnv

K = 3
TIME_LIMIT = 12


class WalkEnv(TaskBatchEnv):
    """A point that starts at random, moves by its clipped action and ends above the task, a limit."""

    def __init__(self, num_envs: int, *, horizon: int) -> None:
        box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        super().__init__(num_envs, box, spaces.Box(-1.0, 1.0, (1,), np.float32), horizon=horizon)
        self.limits, self.positions, self.closings = np.zeros(num_envs), np.zeros(num_envs), 0

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[float]) -> None:
        self.limits[ids] = tasks

    def _reset(self, ids: NDArray[np.intp], rngs: Sequence[np.random.Generator]) -> None:
        self.positions[ids] = [rng.uniform() for rng in rngs]

    def _advance(self, actions: NDArray[Any], ids: Any) -> tuple[Any, Any, Any]:
        self.positions[ids] += np.clip(actions[:, 0].astype(np.float64), -1.0, 1.0)
        return self.positions[ids].copy(), self.positions[ids] > self.limits[ids], False

    def _observe(self) -> NDArray[Any]:
        return self.positions[:, None].astype(np.float32)

    def close_extras(self, **kwargs: Any) -> None:
        self.closings += 1


@dataclass(frozen=True)
class Walks(EnvTaskDistribution[float]):
    horizon: int = 9
    made: list[WalkEnv] = field(default_factory=list)

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[float]:
        return list(map(float, rng.uniform(1.0, 3.0, num_tasks)))

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> TaskVectorEnv:
        self.made.append(WalkEnv(num_envs, horizon=self.horizon))
        return self.made[-1]


class PoleLengths(EnvTaskDistribution[float]):
    horizon = 40

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[float]:
        return list(map(float, rng.uniform(0.2, 1.5, num_tasks)))

    def make_env(self) -> gymnasium.Env[Any, Any]:
        return CartPoleEnv()

    def set_task(self, env: Any, task: float) -> None:
        env.unwrapped.length, env.unwrapped.polemass_length = task, task * env.unwrapped.masspole


@dataclass(frozen=True)
class Gravities(EnvTaskDistribution[float]):
    horizon: int = 8

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[float]:
        return list(map(float, rng.uniform(1.0, 15.0, num_tasks)))

    def make_env(self) -> gymnasium.Env[Any, Any]:
        return TimeLimit(PendulumEnv(), TIME_LIMIT)

    def set_task(self, env: Any, task: float) -> None:
        env.unwrapped.g = task


class NoiseActor:
    """Acts by the noise alone and keeps what `observe` receives. Its state counts its steps."""

    def __init__(self, spaces: Spaces, *, scale: float = 1.0, values: bool = False) -> None:
        self.spaces, self.scale, self.values = spaces, scale, values
        self.observations: list[Tensor] = []
        self.feedback: list[tuple[Tensor, ...]] = []
        self.threads: set[int] = set()

    def act(self, state: Tensor, observations: Tensor, noise: Tensor) -> tuple[Acted, Tensor]:
        self.threads.add(torch.get_num_threads())
        self.observations.append(observations)
        actions = (noise * self.spaces.action_size).long() if self.spaces.discrete else self.scale * noise
        values = observations.sum(-1) if self.values else None
        return Acted(actions, torch.full(observations.shape[:2], -0.5), values), state + 1

    def observe(self, state: Tensor, *feedback: Tensor) -> Tensor:
        self.feedback.append(tuple(tensor.clone() for tensor in feedback))
        return state


FAMILIES = [Walks(), PoleLengths(), Gravities(), Gravities(horizon=20)]
BY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=["walk", "cart-pole", "pendulum", "pendulum-time-limit"])


def tasks_of(family: EnvTaskDistribution[Any], count: int = 4) -> list[Any]:
    return family.sample(count, np.random.default_rng(0))


def collect(
    family: EnvTaskDistribution[Any],
    tasks: Sequence[Any],
    *,
    seeds: Seeds | None = None,
    scale: float = 1.0,
    **settings: Any,
) -> Trajectories:
    collector = RolloutCollector(family, **{"num_trajectories": K, **settings})
    learner = NoiseActor(collector.spaces, scale=scale)
    data = collector.query(tasks, learner, torch.zeros(len(tasks)), seeds or Seeds.first(len(tasks), seed=1))
    collector.close()
    return data


def live(data: Trajectories, name: str, task: int, trajectory: int) -> Tensor:
    """A field on the live steps of one trajectory."""
    steps: Tensor = getattr(data, name)[task, trajectory]
    return steps[data.mask[task, trajectory] > 0]


@BY_FAMILY
def test_shapes_and_types(family: EnvTaskDistribution[Any]) -> None:
    data = collect(family, tasks_of(family))
    size = {Walks: 1, PoleLengths: 4, Gravities: 3}[type(family)]
    rows = (4, K, family.horizon)
    assert data.observations.shape == (*rows, size)
    assert data.last_observations.shape == (4, K, size)
    assert data.diverged.shape == (4, K)
    if isinstance(family, PoleLengths):
        assert (data.actions.shape, data.actions.dtype) == (rows, torch.int64)
    else:
        assert (data.actions.shape, data.actions.dtype) == ((*rows, 1), torch.float32)
    for name in ("rewards", "mask", "log_probs"):
        assert (getattr(data, name).shape, getattr(data, name).dtype) == (rows, torch.float32)
    for name in ("terminated", "truncated"):
        assert (getattr(data, name).shape, getattr(data, name).dtype) == (rows, torch.bool)
    assert data.values is None


@BY_FAMILY
def test_every_trajectory_is_whole_and_has_one_end(family: EnvTaskDistribution[Any]) -> None:
    data = collect(family, tasks_of(family))
    lengths = data.mask.sum(-1).long()
    steps = torch.arange(family.horizon)
    assert torch.equal(data.mask, (steps < lengths.unsqueeze(-1)).float())  # from step 0 on, without a gap
    assert int(lengths.min()) >= 1
    ends = data.terminated | data.truncated
    assert torch.equal(ends, steps == lengths.unsqueeze(-1) - 1)
    assert not (data.terminated & data.truncated).any()
    limit = min(family.horizon, TIME_LIMIT) if isinstance(family, Gravities) else family.horizon
    assert torch.equal(data.truncated.any(-1), (lengths == limit) & ~data.terminated.any(-1))
    assert not data.diverged.any()
    if isinstance(family, Gravities):
        assert (lengths == limit).all()
    else:
        assert data.terminated.any()  # the family must show what it is here for
        assert len(lengths.unique()) > 2
    assert float((data.rewards * (1.0 - data.mask)).abs().sum()) == 0.0


def test_both_kinds_of_end_occur_and_an_end_at_the_horizon_is_no_truncation() -> None:
    data = collect(Walks(horizon=4), tasks_of(Walks(), 20))
    at_horizon = data.mask[..., -1] > 0
    assert (at_horizon & data.terminated[..., -1]).any()
    assert (at_horizon & data.truncated[..., -1]).any()
    assert (~at_horizon & data.terminated.any(-1)).any()


@pytest.mark.parametrize("family", FAMILIES[1:], ids=["cart-pole", "pendulum", "pendulum-time-limit"])
def test_gymnasium_environments_give_what_each_gives_alone(family: EnvTaskDistribution[Any]) -> None:
    """Bit for bit, though autoreset goes on with environments that have ended."""
    seeds = Seeds(seed=2, iteration=3, slots=(5, 0, 7, 1))
    tasks = tasks_of(family)
    data = collect(family, tasks, seeds=seeds, scale=3.0)
    for i, (task, rng) in enumerate(zip(tasks, seeds.query(), strict=True)):
        for k, seed in enumerate(rng.integers(2**31, size=K).tolist()):
            env = family.make_env()
            family.set_task(env, task)
            observation, _ = env.reset(seed=seed)
            for t in range(int(data.mask[i, k].sum())):
                np.testing.assert_array_equal(data.observations[i, k, t].numpy(), observation)
                action = data.actions[i, k, t].numpy()
                if isinstance(env.action_space, spaces.Box):
                    assert env.action_space == spaces.Box(-2.0, 2.0, (1,)), "the policy's 1 is the pendulum's 2"
                    action = np.float32(2.0) * np.clip(action, -1.0, 1.0)
                observation, reward, terminated, _, _ = env.step(action)
                assert float(data.rewards[i, k, t]) == np.float32(reward)
                assert bool(data.terminated[i, k, t]) == terminated
            np.testing.assert_array_equal(data.last_observations[i, k].numpy(), observation)
            env.close()


def test_the_task_sets_the_gymnasium_environment() -> None:
    light, heavy = (collect(Gravities(), [gravity]) for gravity in (1.0, 15.0))
    assert torch.equal(light.observations[:, :, 0], heavy.observations[:, :, 0])
    assert not torch.equal(light.observations, heavy.observations)


def test_native_environments_are_followed_to_their_last_observation() -> None:
    data = collect(Walks(), tasks_of(Walks()))
    for i in range(4):
        for k in range(K):
            positions = live(data, "observations", i, k).squeeze(-1).double()
            moved = positions + live(data, "actions", i, k).squeeze(-1).clamp(-1.0, 1.0)
            torch.testing.assert_close(moved, live(data, "rewards", i, k).double(), rtol=0, atol=1e-5)
            torch.testing.assert_close(moved[:-1], positions[1:], rtol=0, atol=1e-5)
            assert float(data.last_observations[i, k]) == pytest.approx(float(moved[-1]), abs=1e-5)


def test_actions_are_recorded_as_sampled() -> None:
    family, seeds = Gravities(), Seeds.first(2, seed=1)
    data = collect(family, tasks_of(family, 2), seeds=seeds, scale=5.0)
    for i, rng in enumerate(seeds.query()):
        rng.integers(2**31, size=K)
        noise = rng.standard_normal((family.horizon, K, 1), dtype=np.float32)
        np.testing.assert_array_equal(data.actions[i].numpy(), 5.0 * noise.transpose(1, 0, 2))
    assert float(data.actions.abs().max()) > 2.0  # beyond what the environment lets through


def test_what_followed_an_action_is_fed_back_and_nothing_after_the_end() -> None:
    family = Walks()
    collector = RolloutCollector(family, num_trajectories=K)
    learner = NoiseActor(collector.spaces, values=True)
    data = collector.support(tasks_of(family), learner, torch.zeros(4), Seeds.first(4), step=0)
    steps = len(learner.feedback)
    for place, name in enumerate(("rewards", "terminated", "truncated")):
        fed = torch.stack([feedback[place + 1] for feedback in learner.feedback], dim=2)
        assert torch.equal(fed, getattr(data, name)[:, :, :steps])
    assert torch.equal(torch.stack(learner.observations, dim=2), data.observations[:, :, :steps])
    assert data.values is not None
    assert torch.equal(data.values, data.observations.squeeze(-1))
    assert data.state.tolist() == [steps] * 4


@pytest.mark.parametrize("family", [Walks(), PoleLengths()], ids=["gaussian", "categorical"])
def test_recorded_log_probabilities_are_the_policys(family: EnvTaskDistribution[Any]) -> None:
    collector = RolloutCollector(family, num_trajectories=K)
    config = MAMLConfig(hidden_sizes=(8,))
    learner = MAML(config, collector.spaces, generator=torch.Generator().manual_seed(0))
    data = collector.query(tasks_of(family), learner, learner.begin(4), Seeds.first(4))
    replayed = learner.policy(learner.begin(4), 0)(data.observations).log_prob(data.actions).detach()
    torch.testing.assert_close(replayed * data.mask, data.log_probs * data.mask, rtol=1e-5, atol=1e-5)


@BY_FAMILY
def test_a_task_alone_gives_what_it_gives_among_others(family: EnvTaskDistribution[Any]) -> None:
    tasks, slots = tasks_of(family), (3, 9, 4, 0)
    together = collect(family, tasks, seeds=Seeds(1, 0, slots))
    for i, (task, slot) in enumerate(zip(tasks, slots, strict=True)):
        alone = collect(family, [task], seeds=Seeds(1, 0, (slot,)))
        assert torch.equal(alone.mask[0], together.mask[i])
        for name in ("rewards", "terminated", "truncated", "last_observations"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i])
        for k in range(K):
            for name in ("observations", "actions", "log_probs"):
                assert torch.equal(live(alone, name, 0, k), live(together, name, i, k))


def test_a_policy_among_others_differs_by_rounding_only() -> None:
    family = Walks(horizon=5)
    tasks, slots = [100.0] * 4, (3, 9, 4, 0)
    collector = RolloutCollector(family, num_trajectories=K)
    learner = MAML(MAMLConfig(hidden_sizes=(8,)), collector.spaces, generator=torch.Generator().manual_seed(0))
    together = collector.query(tasks, learner, learner.begin(4), Seeds(1, 0, slots))
    for i, slot in enumerate(slots):
        alone = collector.query([tasks[i]], learner, learner.begin(1), Seeds(1, 0, (slot,)))
        for name in ("observations", "actions", "rewards", "log_probs"):
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[i], rtol=1e-5, atol=1e-5)


def test_support_steps_and_query_draw_different_numbers() -> None:
    family, seeds = Walks(), Seeds.first(2)
    collector = RolloutCollector(family, num_trajectories=K)
    learner, tasks = NoiseActor(collector.spaces), [100.0, 100.0]
    drawn = [collector.support(tasks, learner, torch.zeros(2), seeds, step=step) for step in (0, 1, 0)]
    drawn.append(collector.query(tasks, learner, torch.zeros(2), seeds))
    assert torch.equal(drawn[0].actions, drawn[2].actions)
    for other in (drawn[1], drawn[3]):
        assert not torch.equal(drawn[0].actions, other.actions)
        assert not torch.equal(drawn[0].observations[:, :, 0], other.observations[:, :, 0])


def test_results_do_not_depend_on_the_simulators_threads() -> None:
    family = HalfCheetahDir(horizon=6)
    tasks = family.all_tasks()
    one, two = (collect(family, tasks, num_threads=threads) for threads in (1, 2))
    for name in ("observations", "rewards", "last_observations"):
        assert torch.equal(getattr(one, name), getattr(two, name))


class Breaking(HalfCheetahDirEnv):
    """Simulation 1 is given an impossible speed at its fourth step, simulation 2 at its first."""

    def _advance(self, actions: NDArray[Any], ids: Any) -> tuple[Any, Any, Any]:
        for index, step in ((1, 3), (2, 0)):
            if self._elapsed[index] == step:
                self.simulator.qvel[index] = 1e12
        return super()._advance(actions, ids)


@dataclass(frozen=True)
class BreakingFamily(HalfCheetahDir):
    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> HalfCheetahDirEnv:
        return Breaking(max(num_envs, 3), horizon=self.horizon)


def test_a_step_that_breaks_the_simulation_is_not_live() -> None:
    data = collect(BreakingFamily(horizon=6), [HalfCheetahDir().all_tasks()[0]], num_trajectories=3)
    assert data.mask.sum(-1).tolist() == [[6.0, 3.0, 0.0]]
    assert data.diverged.tolist() == [[False, True, True]]
    assert data.num_diverged == 2
    assert data.truncated.int().argmax(-1).tolist() == [[5, 2, 0]]
    assert data.truncated.sum(-1).tolist() == [[1, 1, 0]]
    assert not data.terminated.any()
    assert not (data.rewards * (1.0 - data.mask)).any()
    assert bool(data.rewards.isfinite().all())
    # What followed the last live step is what was seen before the breaking one.
    assert torch.equal(data.last_observations[0, 1], data.observations[0, 1, 3])
    assert torch.equal(data.last_observations[0, 2], data.observations[0, 2, 0])
    healthy = collect(HalfCheetahDir(horizon=6), [HalfCheetahDir().all_tasks()[0]], num_trajectories=3)
    assert torch.equal(data.rewards[0, 0], healthy.rewards[0, 0])
    assert torch.equal(data.observations[0, 1, :4], healthy.observations[0, 1, :4])
    assert float(data.mean_returns()) == pytest.approx(float((data.rewards[0, 0].sum() + data.rewards[0, 1].sum()) / 2))


class SilentlyBreaking(gymnasium.Env[Any, Any]):
    """Says that its third step broke it, and goes on."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.elapsed = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.elapsed += 1
        return np.full(1, self.elapsed, np.float32), 1.0, False, False, {"diverged": self.elapsed == 3}


def test_a_broken_simulation_has_ended_whether_or_not_it_says_so() -> None:
    data = collect(family_of(SilentlyBreaking), [None])
    assert data.mask.tolist() == [[[1.0, 1.0, 0.0, 0.0, 0.0]] * K]
    assert data.diverged.all()
    assert data.truncated.tolist() == [[[False, True, False, False, False]] * K]
    assert data.last_observations.flatten().tolist() == [2.0] * K


class EndsTwice(SilentlyBreaking):
    """Terminates at its third step, and says that it was truncated too, as `TimeLimit` does."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *_ = super().step(action)
        return observation, reward, self.elapsed == 3, self.elapsed == 3, {}


def test_an_end_of_the_mdp_is_no_truncation() -> None:
    data = collect(family_of(EndsTwice), [None])
    assert data.terminated.int().argmax(-1).tolist() == [[2] * K]
    assert not data.truncated.any()


@pytest.mark.parametrize("min_live_steps", [1, 15, 40])
def test_enough_live_steps_in_whole_trajectories_and_no_more(min_live_steps: int) -> None:
    family, tasks = Walks(), [-5.0, 3.0, 100.0]
    first = collect(family, tasks)
    data = collect(family, tasks, min_live_steps=min_live_steps)
    lengths = data.mask.sum(-1)
    assert data.rewards.shape[1] % K == 0
    assert (data.rewards.shape[1] > K) == (min_live_steps > 1)
    assert torch.equal(data.rewards[:, :K], first.rewards)
    for task in range(3):
        kept = int((lengths[task] > 0).sum())
        assert (lengths[task, :kept] > 0).all()
        assert lengths[task].sum() >= min_live_steps
        assert lengths[task, : kept - 1].sum() < min_live_steps
        ends = (data.terminated | data.truncated)[task, :kept]
        assert torch.equal(ends.int().argmax(-1) + 1, lengths[task, :kept].int())
        for k in range(1, kept):
            assert not torch.equal(data.actions[task, k], data.actions[task, k - 1])


class SeekingEnv(WalkEnv):
    """A walk whose aim is to be above 0.8; which the ended ones meet."""

    def step(self, actions: NDArray[Any]) -> Any:
        ended = self._ended.copy()
        *rest, infos = super().step(actions)
        return *rest, {**infos, "success": (self.positions > 0.8) | ended}


class Seeking(Walks):
    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> TaskVectorEnv:
        return SeekingEnv(num_envs, horizon=self.horizon)


@pytest.mark.parametrize("min_live_steps", [None, 15])
def test_a_trajectory_is_a_success_if_a_live_step_was(min_live_steps: int | None) -> None:
    data = collect(Seeking(horizon=5), [-5.0, 0.2, 3.0, 100.0], min_live_steps=min_live_steps)
    assert data.success is not None
    assert data.success.dtype == torch.bool
    expected = ((data.rewards > 0.8) & (data.mask > 0)).any(-1)  # the reward is the position
    assert torch.equal(data.success & (data.mask[..., 0] > 0), expected)
    assert 0 < int(expected.sum()) < int((data.mask[..., 0] > 0).sum())
    lost = (data.rewards <= 0.8) & (data.mask > 0)
    assert (expected & lost.any(-1) & lost.int().argmax(-1).gt(0)).any()  # one that went away again is one
    assert collect(Walks(), [3.0]).success is None


def test_a_step_that_breaks_the_simulation_is_no_success() -> None:
    class Triumphant(SilentlyBreaking):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            *rest, infos = super().step(action)
            return *rest, {**infos, "success": self.elapsed >= 3}  # type: ignore[return-value]

    data = collect(family_of(Triumphant), [None])
    assert data.success is not None
    assert not data.success.any()


@pytest.mark.parametrize("told", [1.0, 1, True, np.True_, np.float32(1.0), np.ones(1)], ids=repr)
def test_gymnasium_environments_tell_success_in_their_own_way(told: Any) -> None:
    class Lucky(SilentlyBreaking):
        """Succeeds in its second step if it starts well, ends in its fourth."""

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            assert seed is not None
            self.well = seed % 2 == 0
            return super().reset(seed=seed)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, *_ = super().step(action)
            success = told if self.well and self.elapsed == 2 else 0 * told
            return observation, float(self.well), self.elapsed == 4, False, {"success": success}

    data = collect(family_of(Lucky), [None] * 4)
    assert data.success is not None
    assert torch.equal(data.success, data.rewards[:, :, 0] > 0)
    assert data.success.any()
    assert not data.success.all()


def test_an_environment_may_speak_of_success_only_when_there_was_one() -> None:
    class Rare(SilentlyBreaking):
        made = 0

        def __init__(self) -> None:
            Rare.made += 1
            self.number, self.resets = Rare.made, 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            self.resets += 1
            return super().reset(seed=seed)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, *_ = super().step(action)
            lucky = (self.number, self.resets, self.elapsed) == (3, 2, 1)
            return observation, 1.0, False, False, {"success": True} if lucky else {}

    assert collect(family_of(Rare), [None]).success is None
    Rare.made = 0
    data = collect(family_of(Rare), [None], min_live_steps=5 * K + 1)
    assert data.success is not None
    assert data.success.tolist() == [[False] * K + [False, True, False]]


def test_torch_acts_on_one_thread_and_gets_its_own_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        collector = RolloutCollector(Walks(), num_trajectories=K)
        learner = NoiseActor(collector.spaces)
        collector.query([2.0], learner, torch.zeros(1), Seeds.first(1))
        assert learner.threads == {1}
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="inside"), one_torch_thread():
            raise RuntimeError("inside")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_gradient_is_recorded_while_acting() -> None:
    collector = RolloutCollector(Walks(), num_trajectories=K)
    state = torch.zeros(1, requires_grad=True)
    data = collector.query([2.0], NoiseActor(collector.spaces), state, Seeds.first(1))
    assert not data.state.requires_grad


class Silent(gymnasium.Env[Any, Any]):
    observation_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)


class Echo(Silent):
    """Rewards each action with itself, whatever its space says."""

    action_space = spaces.Box(-0.5, 0.25, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), float(action[0]), False, False, {}


def test_gymnasium_environments_get_rescaled_and_clipped_actions() -> None:
    data = collect(family_of(Echo), [None])
    assert (data.actions.abs() > 1.0).any()
    torch.testing.assert_close(data.rewards, -0.125 + 0.375 * data.actions.squeeze(-1).clamp(-1.0, 1.0))


def family_of(kind: type[gymnasium.Env[Any, Any]]) -> EnvTaskDistribution[Any]:
    class OneEnvironment(EnvTaskDistribution[Any]):
        horizon = 5

        def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[None]:
            return [None] * num_tasks

        def make_env(self) -> gymnasium.Env[Any, Any]:
            return kind()

    return OneEnvironment()


def test_spaces_that_can() -> None:
    unbounded = type("Unbounded", (Silent,), {"action_space": spaces.Box(-np.inf, np.inf, (3,))})
    assert RolloutCollector(family_of(unbounded), num_trajectories=1).spaces == Spaces(2, 3, discrete=False)
    assert RolloutCollector(family_of(Silent), num_trajectories=1).spaces == Spaces(2, 2, discrete=True)


def test_who_watches_sees_the_reset_and_every_live_step() -> None:
    family, seen = Walks(), []

    def watch(env: TaskVectorEnv, moved: NDArray[np.bool_]) -> None:
        seen.append((np.asarray(moved).copy(), env.positions.copy()))  # type: ignore[attr-defined]

    data = collect(family, tasks_of(family), watch=watch)
    moved = np.stack([row for row, _ in seen])
    assert moved[0].all()
    steps = data.mask.sum(-1).flatten().numpy()
    assert len(seen) == steps.max() + 1
    assert (moved[1:].sum(0) == steps).all()
    assert 1 <= steps.min() < steps.max()
    for index, length in enumerate(steps.astype(int)):
        followed = [positions[index] for row, positions in seen if row[index]]
        task, trajectory = divmod(index, K)
        own = [*data.observations[task, trajectory, :length, 0], data.last_observations[task, trajectory, 0]]
        np.testing.assert_allclose(followed, own, rtol=1e-6)
    broken: list[Any] = []
    tasks = [HalfCheetahDir().all_tasks()[0]]
    collect(BreakingFamily(horizon=6), tasks, watch=lambda env, moved: broken.append(moved.copy()))
    assert np.stack(broken).sum(0).tolist() == [1 + 6, 1 + 3, 1 + 0]


def test_environments_are_kept_between_collections_and_closed_once() -> None:
    family = Walks()
    collector = RolloutCollector(family, num_trajectories=K)
    learner = NoiseActor(collector.spaces)
    for count in (2, 2, 1):
        collector.query([2.0] * count, learner, torch.zeros(count), Seeds.first(count))
    assert [env.num_envs for env in family.made] == [1, 2 * K, K]
    collector.close()
    collector.close()
    assert [env.closings for env in family.made] == [1, 1, 1]
    collector.query([2.0], learner, torch.zeros(1), Seeds.first(1))
    assert len(family.made) == 4


@pytest.mark.parametrize(
    ("where", "change", "said"),
    [
        (
            "make_env",
            lambda: torch.set_default_dtype(torch.float64),
            "dtype() is torch.float64: must stay torch.float32",
        ),
        ("reset", lambda: torch.set_default_dtype(torch.float64), "dtype() is torch.float64: must stay torch.float32"),
        ("step", lambda: torch.set_default_device("meta"), "device() is meta: must stay cpu"),
    ],
)
def test_code_that_changes_torchs_defaults_is_named(where: str, change: Callable[[], None], said: str) -> None:
    class Changing(CartPoleEnv):
        def reset(self, **settings: Any) -> Any:
            if where == "reset":
                change()
            return super().reset(**settings)

        def step(self, action: Any) -> Any:
            if where == "step":
                change()
            return super().step(action)

    class Changes(PoleLengths):
        def make_env(self) -> Any:
            if where == "make_env":
                change()
            return Changing()

    def collect() -> None:
        collector = RolloutCollector(Changes(), num_trajectories=2)
        learner = MAML(MAMLConfig(hidden_sizes=(2,)), collector.spaces, generator=torch.Generator().manual_seed(0))
        collector.query([0.5], learner, learner.begin(1), Seeds.first(1))

    try:
        with pytest.raises(EnvironmentFaultError, match=re.escape(f"torch.get_default_{said}")):
            collect()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
