"""Environments for stable-baselines3: `TaskVecEnv` and `TrialVecEnv`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecMonitor, VecNormalize
from torch import Tensor, nn

from metarl.agents.sb3 import TaskVecEnv, TrialVecEnv
from metarl.core.errors import EnvironmentFaultError, InputError
from metarl.core.tasks import Split
from metarl.envs.bandit import Bandit
from metarl.envs.half_cheetah import Direction, HalfCheetahDir, HalfCheetahVel
from metarl.envs.point_nav import PointNav
from tests.agents.sb3_walks import BOTH, Walk, WalkEnv, Walks, same, walk
from tests.agents.sb3_walks import _sb3_seeds_globals as _sb3_seeds_globals

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
