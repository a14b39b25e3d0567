"""stable-baselines3 both ways: the contract of its environments, our agents as its models, sb3-contrib as an oracle."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from sb3_contrib import TRPO, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecMonitor, VecNormalize
from torch import Tensor, nn

from metarl.agents.cavia import CAVIA, CAVIAConfig
from metarl.agents.maml import MAML, MAMLConfig
from metarl.agents.rl2 import RL2, RL2Config
from metarl.agents.sb3 import AdaptedPredictor, TaskVecEnv, TrialPredictor, TrialVecEnv
from metarl.core.config import TrainerConfig
from metarl.core.episode import run_episodes
from metarl.core.errors import EnvironmentFaultError, InputError
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split
from metarl.core.trainer import Trainer
from metarl.envs.bandit import Bandit
from metarl.envs.bandit_yardsticks import exact_return
from metarl.envs.half_cheetah import Direction, HalfCheetahDir, HalfCheetahVel
from metarl.envs.point_nav import PointNav
from metarl.envs.vector import TaskBatchEnv
from metarl.gradients.trust_region import trust_region_step
from metarl.gradients.vectors import flatten, unflatten
from metarl.networks.policies import Gaussian, make_policy
from metarl.rl.returns import discounted_returns, generalized_advantages
from metarl.rl.rollout import RolloutCollector
from metarl.rl.tasks import EnvTaskDistribution


@pytest.fixture(autouse=True)
def _sb3_seeds_globals(_globals_untouched: None) -> Iterator[None]:
    """SB3 seeds and draws from the global generators, which no test may leave changed."""
    numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    yield
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)
    torch.set_rng_state(torch_state)


@dataclass(frozen=True)
class Walk:
    """Ends after `length` steps; a step pays `pay` times the action."""

    length: int
    pay: float


class WalkEnv(gymnasium.Env[Any, Any]):
    """Observes the steps so far and what was paid so far."""

    observation_space = Box(-100.0, 100.0, (2,), np.float64)

    def __init__(self, discrete: bool) -> None:
        self.action_space = Discrete(2) if discrete else Box(-1.0, 1.0, (1,), np.float32)
        self.task = Walk(1, 0.0)
        self.broken = False
        self.state = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.zeros(2)
        return self.state.copy(), {"seed": seed}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        reward = self.task.pay * float(np.asarray(action).reshape(-1)[0])
        self.state = self.state + np.array([1.0, reward])
        observation = np.full(2, np.nan) if self.broken else self.state.copy()
        infos = {"success": self.state[0] == 2} if self.state[0] <= 2 else {}
        return observation, reward, self.state[0] >= self.task.length, False, infos


class WalkBatch(TaskBatchEnv):
    """The same, all at once; a task that pays nan breaks down in its third step."""

    def _assign_tasks(self, ids: Any, tasks: Sequence[Walk]) -> None:
        self.length, self.pay = (getattr(self, name, np.zeros(self.num_envs)) for name in ("length", "pay"))
        self.length[ids], self.pay[ids] = [task.length for task in tasks], [task.pay for task in tasks]

    def _reset(self, ids: Any, rngs: Any) -> None:
        self.paid = getattr(self, "paid", np.zeros(self.num_envs))
        self.paid[ids] = 0.0

    def _advance(self, actions: Any, ids: Any) -> tuple[Any, Any, Any]:
        actions = np.clip(actions, -1.0, 1.0)
        pay = np.nan_to_num(self.pay[ids], nan=1.0)
        rewards = pay * np.reshape(actions, (len(actions), -1))[:, 0]
        self.paid[ids] += rewards
        step = self._elapsed[ids] + 1
        return rewards, step >= self.length[ids], np.isnan(self.pay[ids]) & (step == 3)

    def _infos(self, ids: Any) -> dict[str, Any]:
        return {"success": self._elapsed[ids] == 2}

    def _observe(self) -> Any:
        return np.stack([self._elapsed.astype(float), self.paid], axis=1)


@dataclass(frozen=True)
class Walks(EnvTaskDistribution[Walk]):
    """Lengths from 1 to 9; test walks pay less than nothing."""

    horizon: int = 5
    discrete: bool = False
    together: bool = True
    mode: AutoresetMode = AutoresetMode.DISABLED

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Walk]:
        sign = 1.0 if split == "train" else -1.0
        return [Walk(int(rng.integers(1, 10)), sign * float(rng.random())) for _ in range(num_tasks)]

    def make_env(self) -> WalkEnv:
        return WalkEnv(self.discrete)

    def set_task(self, env: Any, task: Walk) -> None:
        env.task = task

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> WalkBatch | None:
        if not self.together:
            return None
        spaces = WalkEnv(self.discrete)
        return WalkBatch(
            num_envs, spaces.observation_space, spaces.action_space, horizon=self.horizon, autoreset_mode=self.mode
        )


BOTH = pytest.mark.parametrize("together", [True, False], ids=["together", "gymnasium's own"])


def walk(env: Any, num_steps: int, *, seed: int = 0) -> list[Any]:
    """Observations, rewards, dones, infos and tasks of a random walk, reset first."""
    rng = np.random.default_rng(seed)
    trace: list[Any] = [(env.reset(), env.get_attr("task"))]
    for _ in range(num_steps):
        if isinstance(env.action_space, Discrete):
            actions = rng.integers(env.action_space.n, size=env.num_envs)
        else:
            actions = rng.uniform(-1.0, 1.0, (env.num_envs, *env.action_space.shape)).astype(np.float32)
        trace.append((*env.step(actions), env.get_attr("task")))
    return trace


def same(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


# ---- TaskVecEnv


@BOTH
def test_an_end_is_told_apart_from_a_time_limit_and_followed_by_a_reset(together: bool) -> None:
    lengths = [3, 5, 9]  # before the horizon of 5, at it, after it
    env = TaskVecEnv(Walks(together=together), 3, tasks=[Walk(length, 1.0) for length in lengths])
    assert same(env.reset(), np.zeros((3, 2), np.float32))
    for t in range(1, 11):
        observations, rewards, dones, infos = env.step(np.full((3, 1), 3.0, np.float32))  # clipped to 1
        assert rewards.dtype == np.float32
        assert rewards.tolist() == [1.0] * 3
        assert dones.dtype == np.bool_
        for i, period in enumerate([3, 5, 5]):
            steps = (t - 1) % period + 1
            ended = steps == period
            assert dones[i] == ended
            assert observations[i].tolist() == ([0.0, 0.0] if ended else [steps, steps])
            assert infos[i]["TimeLimit.truncated"] is (ended and i == 2)
            assert ("terminal_observation" in infos[i]) == ended
            if ended:
                assert same(infos[i]["terminal_observation"], np.full(2, period, np.float32))
                assert infos[i]["is_success"] is True
    env.close()


def test_an_episode_without_success_is_none() -> None:
    env = TaskVecEnv(Walks(), 1, tasks=Walk(1, 1.0))
    env.reset()
    assert env.step(np.zeros((1, 1)))[3][0]["is_success"] is False
    env.set_attr("task", Walk(2, 1.0))
    env.step(np.zeros((1, 1)))
    env.set_attr("task", Walk(1, 1.0))
    ends = [env.step(np.zeros((1, 1)))[3][0].get("is_success") for _ in range(4)]
    assert ends == [None, True, False, False], "the success of one episode is not that of the next"


@BOTH
def test_both_kinds_of_environments_give_the_same(together: bool) -> None:
    discrete, other = (TaskVecEnv(Walks(discrete=True, together=kind), 4, seed=3) for kind in (together, not together))
    for one, two in zip(walk(discrete, 30), walk(other, 30), strict=True):
        for left, right in zip(one, two, strict=True):
            if not (isinstance(left, list) and isinstance(left[0], dict)):  # the batch's infos know divergence
                assert same(left, right)


def test_a_broken_simulation_is_a_time_limit_after_the_step_before() -> None:
    env = TaskVecEnv(Walks(horizon=9), 2, tasks=[Walk(9, np.nan), Walk(9, 1.0)])
    env.reset()
    action = np.ones((2, 1), np.float32)
    env.step(action)
    env.step(action)
    observations, rewards, dones, infos = env.step(action)
    assert (dones.tolist(), rewards.tolist()) == ([True, False], [0.0, 1.0])
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["terminal_observation"].tolist() == [2.0, 2.0]
    assert observations.tolist() == [[0.0, 0.0], [3.0, 3.0]]


def test_a_step_that_breaks_the_simulation_does_not_end_the_task() -> None:
    env = TaskVecEnv(Walks(), 1, tasks=Walk(1, 1.0))
    env.reset()
    (step,) = env.get_attr("step")

    def broken(actions: Any) -> Any:
        *others, infos = step(actions)
        return *others, {**infos, "diverged": np.ones(1, bool)}

    env.set_attr("step", broken)
    _, rewards, dones, infos = env.step(np.ones((1, 1)))
    assert (rewards.tolist(), dones.tolist(), infos[0]["TimeLimit.truncated"]) == ([0.0], [True], True)


@BOTH
def test_tasks_are_drawn_anew_where_a_sub_environment_is_reset_and_nowhere_else(together: bool) -> None:
    trace = walk(TaskVecEnv(Walks(together=together), 6, seed=1), 60)
    tasks = trace[0][1]
    drawn: list[list[Walk]] = [[task] for task in tasks]
    for *_, dones, _, now in trace[1:]:
        assert [a == b for a, b in zip(tasks, now, strict=True)] == (~dones).tolist()
        for i in np.flatnonzero(dones):
            drawn[i].append(now[i])
        tasks = now
    everything = [task for sequence in drawn for task in sequence]
    assert len(set(everything)) == len(everything) > 60
    assert all(task.pay > 0 for task in everything)
    # what a sub-environment draws does not depend on when the others end
    few = walk(TaskVecEnv(Walks(together=together), 2, seed=1), 60)
    assert [now[1] for *_, now in few] == [now[1] for *_, now in trace]


def test_neighbouring_seeds_share_no_tasks() -> None:
    one, two = ({task for *_, now in walk(TaskVecEnv(Walks(), 3, seed=s), 9) for task in now} for s in (0, 1))
    assert not one & two


def test_tasks_may_come_from_the_test_split_or_be_fixed() -> None:
    assert all(task.pay < 0 for *_, now in walk(TaskVecEnv(Walks(), 2, split="test"), 9) for task in now)
    fixed = Walk(2, 0.5)
    assert all(now == [fixed] * 3 for *_, now in walk(TaskVecEnv(Walks(), 3, tasks=fixed), 9))


@pytest.mark.parametrize("family", [HalfCheetahVel(horizon=7), PointNav(horizon=7), Walks(together=False)])
def test_equal_seeds_give_equal_bits(family: Any) -> None:
    runs = [walk(TaskVecEnv(family, 3, seed=5, num_threads=threads), 20) for threads in (1, 2)]
    assert same(*runs)
    env = TaskVecEnv(family, 3, seed=6)
    first, second = walk(env, 20), walk(env, 20)
    assert not same(first, runs[0])
    assert not same(first, second), "a reset without a seed goes on"
    assert list(env.seed(5)) == [5, 6, 7]
    assert same(walk(env, 20), runs[0])
    env.seed()
    assert not same(walk(env, 20), runs[0])


def test_what_is_returned_stays_as_it_was() -> None:
    env = TaskVecEnv(Walks(), 2, seed=0)
    kept = [(env.reset(), np.zeros(0))]
    copies = [(kept[0][0].copy(), np.zeros(0))]
    for _ in range(12):
        observations, rewards, *_ = env.step(np.ones((2, 1), np.float32))
        kept.append((observations, rewards))
        copies.append((observations.copy(), rewards.copy()))
    assert same(kept, copies)


@pytest.mark.parametrize(
    "env",
    [
        TaskVecEnv(HalfCheetahVel(horizon=7), 3),
        TaskVecEnv(Walks(), 3),
        TaskVecEnv(Walks(together=False), 3),
        TrialVecEnv(Walks(discrete=True), 3, episodes_per_trial=2),
        TrialVecEnv(PointNav(horizon=7), 3, episodes_per_trial=2),
    ],
)
def test_what_sb3_expects_of_an_environment(env: TaskVecEnv) -> None:
    monitored = VecMonitor(VecCheckNan(env, raise_exception=True))
    observations = monitored.reset()
    rng, returns, lengths = np.random.default_rng(0), np.zeros(3), np.zeros(3)
    episodes = 0
    for _ in range(40):
        assert observations.dtype == env.observation_space.dtype == np.float32
        assert all(env.observation_space.contains(row) for row in observations)
        if isinstance(env.action_space, Discrete):
            actions: Any = rng.integers(env.action_space.n, size=3)
        else:
            actions = rng.uniform(-1.0, 1.0, (3, *env.action_space.shape))
        observations, rewards, dones, infos = monitored.step(actions)
        assert (rewards.shape, rewards.dtype) == ((3,), np.float32)
        assert (dones.shape, dones.dtype) == ((3,), np.bool_)
        assert type(infos) is list
        assert len({id(info) for info in infos}) == 3
        returns, lengths = returns + rewards, lengths + 1
        for i, info in enumerate(infos):
            assert type(info["TimeLimit.truncated"]) is bool
            assert dones[i] or not info["TimeLimit.truncated"]
            assert dones[i] == ("terminal_observation" in info) == ("episode" in info)
            if dones[i]:
                assert env.observation_space.contains(info["terminal_observation"])
                assert (info["episode"]["l"], info["episode"]["r"]) == (lengths[i], pytest.approx(returns[i], abs=1e-4))
                returns[i] = lengths[i] = 0.0
                episodes += 1
    assert episodes >= 3
    VecNormalize(env).reset()
    env.close()


def test_attributes_of_a_batch_belong_to_all() -> None:
    env = TaskVecEnv(Walks(), 3, tasks=Walk(2, 1.0))
    assert env.get_attr("horizon", indices=[0, 2]) == [5, 5]
    assert env.get_attr("render_mode") == [None] * 3
    assert not env.has_attr("nothing")
    with pytest.raises(ValueError, match="metadata belongs to all 3 sub-environments; set it without indices"):
        env.set_attr("metadata", {}, indices=0)
    env.set_attr("horizon", 4)
    assert env.get_attr("horizon") == [4] * 3
    assert env.env_is_wrapped(gymnasium.wrappers.TimeLimit) == [False] * 3
    assert list(env.get_images()) == [None] * 3
    env.set_attr("task", Walk(3, 2.0), indices=1)
    env.reset()
    assert env.get_attr("task") == [Walk(2, 1.0), Walk(3, 2.0), Walk(2, 1.0)]
    env.set_attr("task", None)
    env.reset()
    assert len(set(env.get_attr("task"))) == 3
    calls: list[int] = []
    env.set_attr("count", lambda number: calls.append(number) or "counted")
    assert env.env_method("count", 7, indices=[0, 1]) == ["counted", "counted"]
    assert calls == [7]


def test_attributes_of_gymnasiums_environments_belong_to_each() -> None:
    class Limited(Walks):
        def make_env(self) -> Any:
            return gymnasium.wrappers.TimeLimit(WalkEnv(self.discrete), 4)

        def set_task(self, env: Any, task: Walk) -> None:
            env.unwrapped.task = task

    env = TaskVecEnv(Limited(together=False), 2, tasks=Walk(9, 1.0))
    assert env.env_is_wrapped(gymnasium.wrappers.TimeLimit) == [True, True]
    assert env.env_is_wrapped(gymnasium.wrappers.NormalizeReward) == [False, False]
    env.set_attr("mark", 3, indices=1)
    assert env.get_attr("mark", indices=1) == [3]
    assert env.get_attr("render_mode") == [None, None]
    env.reset()
    assert [seed["seed"] for seed in env.reset_infos] == [0, 1]
    steps = [env.step(np.ones((2, 1)))[2].tolist() for _ in range(4)]
    assert steps == [[False] * 2] * 3 + [[True] * 2], "the environment's own limit is shorter than the horizon"
    assert [seed["seed"] for seed in env.reset_infos] == [None, None]
    state = env.env_method("reset", indices=1)
    assert state[0][0].tolist() == [0.0, 0.0]
    env.close()


def test_bad_input_is_named() -> None:
    for count in (0, "4", None, 2.0):
        with pytest.raises(InputError, match=f"num_envs = {count!r}: must be an integer >= 1"):
            TaskVecEnv(Walks(), count)  # type: ignore[arg-type]
    for other in (WalkEnv(False), Walks, "half-cheetah-dir"):
        with pytest.raises(InputError, match=r"distribution = .*: must be an EnvTaskDistribution, such as Half"):
            TaskVecEnv(other, 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"one task, task=\.\.\., or a list of 3: one per sub-environment"):
        TaskVecEnv(Walks(), 3, tasks=[Walk(1, 1.0)])
    with pytest.raises(InputError, match="seed = -1: must be an integer >= 0"):
        TaskVecEnv(Walks(), 1, seed=-1)
    with pytest.raises(InputError, match=r"WalkBatch.metadata\['autoreset_mode'\] = .*must be AutoresetMode.DISABLED"):
        TaskVecEnv(Walks(mode=AutoresetMode.SAME_STEP), 1)
    with pytest.raises(InputError, match="episodes_per_trial = 0: must be an integer >= 1"):
        TrialVecEnv(Walks(), 1, episodes_per_trial=0)
    env = TaskVecEnv(Walks(), 1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros((1, 1)))
    with pytest.raises(InputError, match=r"options = .*environments vary by their task"):
        env.set_options({"mood": 1})


def test_an_observation_that_is_not_finite_is_the_environments_fault() -> None:
    env = TaskVecEnv(Walks(together=False), 2, tasks=[Walk(9, 0.25), Walk(9, 0.75)])
    env.reset()
    env.get_attr("unwrapped")[1].broken = True
    with pytest.raises(EnvironmentFaultError, match=r"nan: must be finite \(task .*pay=0.75\), step 1\)$"):
        env.step(np.zeros((2, 1)))


class Forward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gymnasium's half cheetah with the reward of half-cheetah-dir, forward."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, infos = self.env.step(action)
        reward = infos["x_velocity"] - 0.05 * np.square(np.asarray(action, np.float64)).sum()
        return observation, reward, terminated, truncated, infos


def gymnasiums_own(num_envs: int, horizon: int) -> DummyVecEnv:
    return DummyVecEnv([lambda: Forward(gymnasium.make("HalfCheetah-v5", max_episode_steps=horizon))] * num_envs)


def test_half_cheetahs_move_as_in_sb3s_own_environments() -> None:
    ours, theirs = TaskVecEnv(HalfCheetahDir(horizon=9), 3, tasks=Direction(1), seed=4), gymnasiums_own(3, 9)
    theirs.seed(4)
    assert same(ours.reset(), theirs.reset().astype(np.float32))
    rng = np.random.default_rng(0)
    for _ in range(30):
        actions = rng.uniform(-1.0, 1.0, (3, 6)).astype(np.float32)
        observations, rewards, dones, infos = ours.step(actions)
        expected, paid, over, told = theirs.step(actions)
        assert same(observations, expected.astype(np.float32))
        assert same(rewards, paid)
        assert same(dones, over)
        for one, two in zip(infos, told, strict=True):
            assert one["TimeLimit.truncated"] is two["TimeLimit.truncated"]
            if "terminal_observation" in two:
                assert same(one["terminal_observation"], two["terminal_observation"].astype(np.float32))


def test_a_whole_training_has_the_bits_of_one_on_sb3s_own_environments() -> None:
    ours, theirs = TaskVecEnv(HalfCheetahDir(horizon=20), 2, tasks=Direction(1)), gymnasiums_own(2, 20)
    trained = [
        PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=2, seed=3, device="cpu").learn(256)
        for env in (ours, theirs)
    ]
    for one, two in zip(*(model.policy.parameters() for model in trained), strict=True):
        assert torch.equal(one, two)


def weights(model: Any) -> Tensor:
    return nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


@pytest.mark.parametrize(
    ("make", "env"),
    [
        (lambda env: PPO("MlpPolicy", env, n_steps=64, device="cpu"), TaskVecEnv(HalfCheetahVel(horizon=20), 4)),
        (lambda env: SAC("MlpPolicy", env, learning_starts=100, device="cpu"), TaskVecEnv(PointNav(horizon=20), 4)),
        (lambda env: DQN("MlpPolicy", env, learning_starts=100, device="cpu"), TaskVecEnv(Walks(discrete=True), 4)),
        (
            lambda env: RecurrentPPO("MlpLstmPolicy", env, n_steps=20, batch_size=40, n_epochs=1, device="cpu"),
            TrialVecEnv(Bandit(num_arms=3, num_pulls=5), 4, episodes_per_trial=2),
        ),
    ],
    ids=["PPO", "SAC", "DQN", "RecurrentPPO"],
)
def test_an_algorithm_of_sb3_trains(make: Any, env: TaskVecEnv) -> None:
    model = make(VecMonitor(env))
    before = weights(model)
    model.learn(320)
    assert not torch.equal(before, weights(model))
    assert weights(model).isfinite().all()
    assert model.num_timesteps >= 320
    assert len(model.ep_info_buffer) >= 320 // 20 - 4
    env.close()


# ---- TrialVecEnv


@pytest.mark.parametrize("discrete", [True, False])
def test_a_trial_is_one_episode_of_the_inputs_of_rl2(discrete: bool) -> None:
    env = TrialVecEnv(Walks(discrete=discrete), 2, tasks=[Walk(2, 2.0), Walk(9, 1.0)], episodes_per_trial=2)
    action = np.ones(2, int) if discrete else np.full((2, 1), 3.0, np.float32)
    told = [0.0, 1.0] if discrete else [3.0]  # as given, not as clipped
    nothing = [0.0] * (len(told) + 2)
    assert env.reset().tolist() == [[0.0, 0.0, *nothing]] * 2
    for t in range(1, 21):
        observations, rewards, dones, infos = env.step(action)
        for i, (length, pay) in enumerate([(2, 2.0), (5, 1.0)]):
            steps = (t - 1) % length + 1
            ended = steps == length
            over = t % (2 * length) == 0
            assert rewards[i] == pay
            assert dones[i] == over
            assert infos[i]["TimeLimit.truncated"] is False
            last = [*told, pay, float(ended)]
            if over:
                assert infos[i]["terminal_observation"].tolist() == [length, length * pay, *last]
                assert observations[i].tolist() == [0.0, 0.0, *nothing]
            else:
                assert observations[i].tolist() == ([0.0, 0.0] if ended else [steps, steps * pay]) + last
    env.close()


def test_a_task_lasts_for_a_trial() -> None:
    trace = walk(TrialVecEnv(Walks(discrete=True), 4, episodes_per_trial=3, seed=2), 80)
    tasks, ends = trace[0][1], 0
    for observations, _, dones, _, now in trace[1:]:
        assert [a == b for a, b in zip(tasks, now, strict=True)] == (~dones).tolist()
        ends += int(((observations[:, -1] == 1.0) & ~dones).sum())
        tasks = now
    trials = sum(int(dones.sum()) for _, _, dones, _, _ in trace[1:])
    assert trials > 10
    assert 2 * trials <= ends <= 2 * trials + 8


def test_a_reset_begins_a_new_trial() -> None:
    env = TrialVecEnv(Walks(), 1, tasks=Walk(1, 1.0), episodes_per_trial=2)
    env.reset()
    env.step(np.ones((1, 1)))
    assert env.reset()[0].tolist() == [0.0] * 5
    assert [bool(env.step(np.ones((1, 1)))[2][0]) for _ in range(4)] == [False, True, False, True]


# ---- predictors


def adapted(learner: Any, family: Any, collector: RolloutCollector, num_tasks: int) -> tuple[Any, Any, Seeds]:
    """Tasks, the state adapted to each, and the seeds of its query."""
    tasks, seeds = family.sample(num_tasks, np.random.default_rng(0)), Seeds.first(num_tasks, seed=7)
    state = run_episodes(learner, collector, tasks, seeds, num_steps=1).state
    return tasks, state, seeds


@pytest.mark.parametrize(("agent", "config"), [(MAML, MAMLConfig), (CAVIA, CAVIAConfig)])
def test_an_adapted_agent_returns_what_it_does_in_our_own_collection(agent: Any, config: Any) -> None:
    family, width = PointNav(horizon=25), 3
    collector = RolloutCollector(family, num_trajectories=width)
    learner = agent(config(hidden_sizes=(16,)), collector.spaces, generator=torch.Generator().manual_seed(0))
    tasks, state, seeds = adapted(learner, family, collector, 3)
    own = collector.query(tasks, learner, state, seeds)
    env = TaskVecEnv(family, width, tasks=tasks[1])
    rng = seeds.query()[1]
    env._seeds = [int(seed) for seed in rng.integers(2**31, size=width)]
    predictor = AdaptedPredictor(learner, env.action_space, state=state, task=1, seed=rng)
    returns, lengths = evaluate_policy(
        predictor, env, width, deterministic=False, return_episode_rewards=True, warn=False
    )
    assert sorted(lengths) == sorted(own.mask[1].sum(1).int().tolist())
    assert sorted(returns) == pytest.approx(sorted(own.rewards[1].double().sum(1).tolist()), abs=1e-4)
    single, kept = predictor.predict(np.ones(2), state=(5,), deterministic=True)
    assert kept == (5,)
    assert single.shape == (2,)
    limit = env.action_space.high[0]
    mean = learner.policy(state, 1)(torch.ones(2)).mean.detach()
    assert single == pytest.approx(mean.clamp(-limit, limit).numpy(), abs=1e-6)
    unadapted = AdaptedPredictor(learner, env.action_space).predict(np.ones(2), deterministic=True)[0]
    assert unadapted != pytest.approx(single, abs=1e-6)
    rows = predictor.predict(np.zeros((400, 2)))[0]
    assert rows.shape == (400, 2)
    assert np.abs(rows).max() == limit, "clipped to the action space"


class Replayed(np.random.Generator):
    """Returns the sampling noise of our own collection, step by step."""

    def __init__(self, rows: Sequence[Any]) -> None:
        super().__init__(np.random.PCG64(0))
        self.rows = iter(rows)

    def random(self, *_: Any, **__: Any) -> Any:
        return next(self.rows)[None]

    standard_normal = random


def noise_of(rng: np.random.Generator, horizon: int, shape: tuple[int, ...]) -> list[Any]:
    """The noise of a collection, by step."""
    rng.integers(2**31, size=shape[0])  # the environments' seeds
    draw = rng.random if len(shape) == 1 else rng.standard_normal
    return list(draw((horizon, *shape), dtype=np.float32))


@pytest.mark.parametrize("memory", ["lstm", "gru", "transformer", "mann"])
@pytest.mark.parametrize("discrete", [True, False])
def test_rl2_remembers_as_in_our_own_collection(memory: Any, discrete: bool) -> None:
    family, width, num_trials = Walks(horizon=4, discrete=discrete), 5, 2
    config = RL2Config(memory=memory, hidden_size=8, trajectories_per_trial=3, num_trajectories=width, output_gain=3.0)
    collector = RolloutCollector(family, num_trajectories=width)
    learner = RL2(config, collector.spaces, generator=torch.Generator().manual_seed(1))
    task, own, noise = Walk(9, 1.5), [], []
    for trial in range(num_trials):
        seeds = Seeds.first(1, seed=trial)
        episodes = run_episodes(learner, collector, [task], seeds, num_steps=2)
        parts = (*episodes.support, episodes.query)
        own += sum(part.rewards[0].double().sum(1) for part in parts).tolist()  # type: ignore[union-attr]
        for rngs in (seeds.support(0), seeds.support(1), seeds.query()):
            noise += noise_of(rngs[0], 4, (width,) if discrete else (width, 1))
    env = TrialVecEnv(family, width, tasks=task, episodes_per_trial=3)
    predictor = TrialPredictor(learner, env.action_space, seed=Replayed(noise))
    returns, lengths = evaluate_policy(
        predictor, env, num_trials * width, deterministic=False, return_episode_rewards=True, warn=False
    )
    assert lengths == [12] * num_trials * width
    assert len(set(own)) > 1
    assert returns == pytest.approx(own, abs=1e-5)


def test_a_memory_is_cleared_where_a_trial_begins_and_nowhere_else() -> None:
    spaces = RolloutCollector(Walks(), num_trajectories=1).spaces
    for memory in ("lstm", "gru", "transformer", "mann"):
        config = RL2Config(memory=memory, hidden_size=8, output_gain=3.0)  # type: ignore[arg-type]
        learner = RL2(config, spaces, generator=torch.Generator().manual_seed(0))
        predictor = TrialPredictor(learner, Box(-1.0, 1.0, (1,), np.float32))
        first, second = np.random.default_rng(0).normal(size=(2, 2, 5)).astype(np.float32)

        def act(rows: Any, state: Any = None, starts: Any = None, predictor: Any = predictor) -> tuple[Any, Any]:
            return predictor.predict(rows, state, starts, deterministic=True)  # type: ignore[no-any-return]

        alone, state = act(first)
        again, _ = act(second)
        kept, _ = act(second, state)
        mixed, after = act(second, state, np.array([True, False]))
        assert not np.allclose(kept, again, atol=1e-4)
        np.testing.assert_allclose(mixed[0], again[0], atol=1e-6)
        np.testing.assert_allclose(mixed[1], kept[1], atol=1e-6)
        assert all(len(part) == 2 for part in after)
        single, _ = act(first[0])
        assert single.shape == (1,)
        np.testing.assert_allclose(single, alone[0], atol=1e-5)


def test_a_predictor_says_what_does_not_fit() -> None:
    collector = RolloutCollector(Walks(), num_trajectories=1)
    maml = MAML(MAMLConfig(), collector.spaces, generator=torch.Generator())
    rl2 = RL2(RL2Config(), collector.spaces, generator=torch.Generator())
    space = Box(-1.0, 1.0, (1,), np.float32)
    with pytest.raises(InputError, match=r"action_space = Discrete\(2\): must be a Box of shape"):
        AdaptedPredictor(maml, Discrete(2))
    with pytest.raises(InputError, match=r"task = 2: must be an integer in \[0, 2\), one of the tasks of the state"):
        AdaptedPredictor(maml, space, state=maml.begin(2), task=2)
    with pytest.raises(InputError, match=r"state = 'TrialState': must be an adapted state of this learner"):
        AdaptedPredictor(maml, space, state=rl2.begin(2))
    kinds = [
        (AdaptedPredictor, maml, "an RL agent that takes gradient steps", (rl2, "'RL2'", "write TrialPredictor")),
        (TrialPredictor, rl2, "RL2, or one derived from it", (maml, "'MAML'", "write AdaptedPredictor")),
    ]
    for kind, learner, needed, (other, name, advice) in kinds:
        wrong = [(other, f"{name}: must be {needed}; {advice}"), (None, f"'NoneType': must be {needed}")]
        wrong += [
            (path, f"'runs/x': must be {needed}; write metarl.load('runs/x')") for path in ("runs/x", Path("runs/x"))
        ]
        for given, said in wrong:
            with pytest.raises(InputError, match=re.escape(f"learner = {said}")):
                kind(given, space)
        call = f"write {kind.__name__}(learner, env.action_space)"
        with pytest.raises(InputError, match=re.escape(f"action_space: missing; {call}")):
            kind(learner)
        with pytest.raises(InputError, match=re.escape(f": must be a gymnasium space; {call}")):
            kind(learner, TaskVecEnv(Walks(), 1))
    with pytest.raises(InputError, match=r"observation: .*; must be numbers, "):
        AdaptedPredictor(maml, space).predict({"position": 1})


def test_a_predictor_in_another_environment_names_its_own() -> None:
    spaces = RolloutCollector(Walks(), num_trajectories=1).spaces
    rl2 = RL2(RL2Config(), spaces, generator=torch.Generator())
    maml = MAML(MAMLConfig(), spaces, generator=torch.Generator())
    trial = r"\[5\] or \[n, 5\]: an observation of TrialVecEnv\(distribution, num_envs, episodes_per_trial=...\)$"
    for env in (WalkEnv(discrete=False), TaskVecEnv(Walks(), 1)):
        with pytest.raises(InputError, match=rf"observation.shape = \(1, 2\): must be {trial}"):
            evaluate_policy(TrialPredictor(rl2, env.action_space), env, warn=False)  # type: ignore[arg-type]
    own = TrialVecEnv(Walks(), 1, episodes_per_trial=2)
    with pytest.raises(InputError, match=r"\(1, 5\): must be \[2\] or \[n, 2\]: an observation of TaskVecEnv$"):
        evaluate_policy(AdaptedPredictor(maml, own.action_space), own, warn=False)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Shaped(Walks):
    """Tasks of any type."""

    like: Any = 0.5
    together: bool = False

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return [self.like] * num_tasks

    def set_task(self, env: Any, task: Any) -> None:
        env.given = task


def tasks_given(family: Any, num_envs: int, **settings: Any) -> list[Any]:
    """The task that each environment gets at its reset."""
    env = TaskVecEnv(family, num_envs, **settings)
    env.reset()
    return [env.given for env in env.get_attr("unwrapped")]


TUPLE, LIST, ARRAY = (0.5, -0.5), [0.5, -0.5], np.zeros(2)


@pytest.mark.parametrize("num_envs", [2, 4])
@pytest.mark.parametrize("one", [TUPLE, LIST, ARRAY, {"goal": 1}, "left", Walk(1, 1.0), (1, "two"), ()], ids=repr)
def test_one_task_is_one_task_whatever_its_type(one: Any, num_envs: int) -> None:
    family = Shaped(like=one)
    for settings in ({"task": one}, {"tasks": [one] * num_envs}):
        assert [task is one for task in tasks_given(family, num_envs, **settings)] == [True] * num_envs
    if isinstance(one, list):
        with pytest.raises(InputError, match=r"must be a list of tasks; write task=\.\.\. for one task that is a list"):
            TaskVecEnv(family, num_envs, tasks=one)
    else:
        assert [task is one for task in tasks_given(family, num_envs, tasks=one)] == [True] * num_envs


@pytest.mark.parametrize(
    ("like", "tasks"),
    [(Walk(1, 1.0), (Walk(2, 1.0),) * 2), (0.5, (0.1, 0.2)), (TUPLE, (TUPLE, TUPLE)), (ARRAY, np.zeros((2, 2)))],
    ids=repr,
)
def test_what_may_be_one_task_or_several_is_refused(like: Any, tasks: Any) -> None:
    with pytest.raises(
        InputError, match=r"must be a list of tasks, tasks=\[\.\.\.\]; or one task for all, task=\.\.\."
    ):
        TaskVecEnv(Shaped(like=like), 2, tasks=tasks)
    for given, task in zip(tasks_given(Shaped(like=like), 2, tasks=list(tasks)), tasks, strict=True):
        assert np.all(given == task)
    with pytest.raises(InputError, match=r"tasks = .*: must be left out where `task` is given"):
        TaskVecEnv(Shaped(like=like), 2, tasks=tasks, task=like)


# ---- sb3-contrib as an oracle


def in_double(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """SB3 casts observations to float32; this makes the whole model compute in float64."""
    model.policy.double()
    monkeypatch.setattr(
        "stable_baselines3.common.policies.preprocess_obs", lambda observations, *_, **__: observations.double()
    )
    to_torch = model.rollout_buffer.to_torch
    model.rollout_buffer.to_torch = lambda array, copy=True: to_torch(array, copy).double()


def test_a_trust_region_step_is_that_of_sb3_contribs_trpo(monkeypatch: pytest.MonkeyPatch) -> None:
    env = TaskVecEnv(HalfCheetahVel(horizon=32), 4, seed=0)
    model = TRPO(
        "MlpPolicy", env, n_steps=64, batch_size=256, cg_damping=1e-2, cg_max_steps=10, n_critic_updates=1,
        line_search_max_iter=10, target_kl=0.02, policy_kwargs={"net_arch": [16, 16]}, seed=1, device="cpu",
    )  # fmt: skip
    in_double(monkeypatch, model)
    # its conjugate gradients start at noise, ours at zero
    monkeypatch.setattr("sb3_contrib.common.utils.th.randn_like", torch.zeros_like)
    _, callback = model._setup_learn(256)
    model.collect_rollouts(env, callback, model.rollout_buffer, n_rollout_steps=64)
    (data,) = model.rollout_buffer.get(None)
    policy, names = model.policy, {"mlp_extractor.policy_net.0": 0, "mlp_extractor.policy_net.2": 1, "action_net": 2}
    module = make_policy(
        env.spaces, hidden_sizes=(16, 16), activation="tanh", initial_std=1.0, min_std=1e-6,
        generator=torch.Generator(),
    ).double()  # fmt: skip

    def theirs() -> dict[str, Tensor]:
        state = policy.state_dict()
        layers = {
            f"mean.layers.{k}.{part}": state[f"{name}.{part}"]
            for name, k in names.items()
            for part in ("weight", "bias")
        }
        return {name: ({"log_std": state["log_std"]} | layers)[name].clone() for name, _ in module.named_parameters()}

    start = theirs()
    advantages = (data.advantages - data.advantages.mean()) / (data.advantages.std() + 1e-8)

    def distribution(vector: Tensor) -> Gaussian:
        found: Gaussian = torch.func.functional_call(module, unflatten(vector, start), (data.observations,))
        return found

    def objective(vector: Tensor) -> Tensor:
        ratio = (distribution(vector).log_prob(data.actions) - data.old_log_prob).exp()
        return (ratio * advantages).mean()

    vector = flatten(start)
    old = distribution(vector).detach()

    def divergence(candidate: Tensor) -> Tensor:
        return distribution(candidate).kl(old).mean()

    def product(direction: Tensor) -> Tensor:
        curved: Tensor = torch.func.grad(lambda point: torch.func.grad(divergence)(point) @ direction)(vector)
        return curved

    num = env.spaces.action_size  # its KL of normal actions is the mean over their dimensions, ours the sum
    step = trust_region_step(
        vector, float(objective(vector)), torch.func.grad(objective)(vector), product,
        lambda candidate: (float(objective(candidate)), float(divergence(candidate))),
        max_kl=num * 0.02, cg_iterations=10, cg_damping=num * 1e-2, max_backtracks=10, backtrack_ratio=0.8,
    )  # fmt: skip
    model.train()
    assert step.accepted
    expected = flatten(theirs())
    assert float((expected - vector).norm()) > 0.05
    torch.testing.assert_close(step.vector, expected, rtol=0, atol=1e-9)
    assert model.logger.name_to_value["train/kl_divergence_loss"] == pytest.approx(step.kl / num, rel=1e-7)
    gained = model.logger.name_to_value["train/policy_objective"] - float(objective(vector))
    assert gained == pytest.approx(step.improvement, rel=1e-7)


def recurrent(env: Any, **settings: Any) -> RecurrentPPO:
    kwargs = {"lstm_hidden_size": 8, "net_arch": [], "enable_critic_lstm": False, "shared_lstm": True}
    kwargs |= settings.pop("policy_kwargs", {})
    return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=kwargs, device="cpu", seed=2, **settings)


def test_returns_and_advantages_over_trials_are_those_of_recurrent_ppo() -> None:
    width, length, trials = 4, 9, 3
    env = TrialVecEnv(Walks(horizon=3, discrete=True), width, tasks=Walk(9, 1.0), episodes_per_trial=3)
    model = recurrent(env, n_steps=length * trials, batch_size=12, gamma=0.9, gae_lambda=0.8)
    _, callback = model._setup_learn(width * length * trials)
    buffer = model.rollout_buffer
    model.collect_rollouts(env, callback, buffer, n_rollout_steps=length * trials)

    def by_trial(array: Any) -> Tensor:
        return torch.from_numpy(array.reshape(trials, length, width).transpose(2, 0, 1).reshape(-1, length)).double()

    starts = by_trial(buffer.episode_starts)
    assert starts.sum(1).tolist() == starts[:, 0].tolist() == [1.0] * len(starts)
    rewards, values, mask = by_trial(buffer.rewards), by_trial(buffer.values), torch.ones_like(starts)
    assert float(rewards.sum()) > 0
    nothing = torch.zeros(len(rewards), dtype=torch.float64)  # is what the end of a trial is worth
    advantages = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.8, last_values=nothing)
    torch.testing.assert_close(by_trial(buffer.advantages), advantages, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_trial(buffer.returns), advantages + values, rtol=0, atol=1e-5)
    whole = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=1.0, last_values=nothing)
    torch.testing.assert_close(whole + values, discounted_returns(rewards, mask, gamma=0.9))


def test_rl2_with_the_weights_of_a_recurrent_ppo_does_and_values_the_same() -> None:
    width = 6
    env = TrialVecEnv(Bandit(num_arms=4, num_pulls=5), width, episodes_per_trial=2, seed=1)
    model = recurrent(env, n_steps=10, batch_size=10)
    learner = RL2(RL2Config(hidden_size=8), env.spaces, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # so that its actions depend on its memory
        for parameter in (*model.policy.lstm_actor.parameters(), model.policy.action_net.weight):
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    copied = learner.network
    copied.memory.network.load_state_dict(model.policy.lstm_actor.state_dict())  # type: ignore[union-attr]
    copied.policy.load_state_dict(model.policy.action_net.state_dict())
    copied.value.load_state_dict(model.policy.value_net.state_dict())
    predictor = TrialPredictor(learner, env.action_space)
    observations, starts = env.reset(), np.ones(width, bool)
    ours: Any = None
    theirs: Any = None
    seen = set()
    for _ in range(25):
        actions, ours = predictor.predict(observations, ours, starts, deterministic=True)
        expected, theirs = model.predict(observations, theirs, starts, deterministic=True)
        assert actions.tolist() == expected.tolist()
        for mine, other in zip(ours, theirs, strict=False):
            np.testing.assert_allclose(mine, other[0], atol=1e-6)
        seen |= {*actions.tolist()}
        observations, _, starts, _ = env.step(actions)
    assert len(seen) > 1


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("kind", ["RecurrentPPO", "RL2"])
def test_a_memory_learns_a_bandit_over_trials(kind: str) -> None:
    """Random play pays 5 of 10 pulls; half the way from there to the exact Bayes optimum needs a memory."""
    family, seed = Bandit(num_arms=2, num_pulls=5), 0
    env = TrialVecEnv(family, 40, episodes_per_trial=2, seed=seed)
    if kind == "RecurrentPPO":
        model: Any = recurrent(
            VecMonitor(env), n_steps=50, batch_size=500, learning_rate=3e-3, gae_lambda=0.9, n_epochs=5,
            policy_kwargs={"lstm_hidden_size": 32},
        )  # fmt: skip
        model.learn(40 * 50 * 40)
    else:
        config = RL2Config(hidden_size=32, trajectories_per_trial=2, num_trajectories=1, learning_rate=3e-3)
        collector = RolloutCollector(family, num_trajectories=1)
        learner = RL2(config, collector.spaces, generator=torch.Generator().manual_seed(seed))
        trainer = Trainer(learner, collector, family, TrainerConfig(iterations=40, meta_batch_size=200, seed=seed))
        for _ in range(40):
            trainer.train_iteration()
        model = TrialPredictor(learner, env.action_space)
    test = TrialVecEnv(family, 200, episodes_per_trial=2, split="test", seed=99)
    score, spread = evaluate_policy(model, test, 4000, deterministic=True, warn=False)
    assert score - 2.0 * spread / 4000**0.5 > 0.5 * (5.0 + exact_return(2, 10))


@pytest.mark.slow  # a quarter of a minute
def test_ppo_learns_one_task() -> None:
    """A point that stands still at the start gets the first return; it is to get rid of half of that."""
    family = PointNav(horizon=50)
    (task,) = family.sample(1, np.random.default_rng(4), split="test")
    test = TaskVecEnv(family, 10, tasks=task, seed=1)
    model = PPO(
        "MlpPolicy", TaskVecEnv(family, 8, tasks=task), n_steps=128, batch_size=256, gamma=0.95, seed=0, device="cpu"
    )
    before = evaluate_policy(model, test, 10, warn=False)[0]
    model.learn(60_000)
    after = evaluate_policy(model, test, 10, warn=False)[0]
    assert before < 0.0
    assert after > 0.5 * before
