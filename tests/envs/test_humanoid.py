from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs import batch
from metarl.envs.humanoid import HumanoidDir
from metarl.envs.locomotion import Direction
from metarl.envs.simulator import LoopSimulator
from metarl.testing.tasks import check_task_distribution

SEEDS = [0, 1, 77]
NUM_STEPS = 40


def random_actions(num_steps=NUM_STEPS):
    return np.random.default_rng(5).uniform(-1, 1, (num_steps, len(SEEDS), 17)).astype(np.float32)


@pytest.fixture(scope="module")
def gymnasium_run():
    """First observations, then states, rewards and ends of gymnasium's own environment, [num_steps, num_seeds, ...]."""
    HumanoidDir().make_vector_env(1).close()  # sends MuJoCo's messages to a logger
    controls = 0.4 * random_actions().astype(np.float64)
    first, states, rewards, ends = [], [], [], []
    for i, seed in enumerate(SEEDS):
        env = gymnasium.make("Humanoid-v5", contact_cost_weight=0.0, disable_env_checker=True).unwrapped
        first.append(env.reset(seed=seed)[0][:45])
        steps = [(*env.step(control)[1:3], env.state_vector()) for control in controls[:, i]]
        for parts, values in zip((rewards, ends, states), zip(*steps, strict=True), strict=True):
            parts.append(np.stack(values))
        env.close()
    return np.stack(first), *(np.stack(parts, 1) for parts in (states, rewards, ends))


@pytest.mark.parametrize(("loop", "num_threads"), [(False, 1), (False, 2), (True, 2)])
def test_the_physics_is_gymnasiums_bit_for_bit(gymnasium_run, monkeypatch, loop, num_threads):
    if loop:
        monkeypatch.setattr(batch, "make_simulator", LoopSimulator)
    first, states, gym_rewards, ends = gymnasium_run
    env = HumanoidDir().make_vector_env(len(SEEDS), num_threads=num_threads)
    assert isinstance(env.simulator, LoopSimulator) == loop
    observations, _ = env.reset(seed=SEEDS)
    assert (observations == first).all()
    live, ended_early = np.ones(len(SEEDS), bool), False
    for step, acts in enumerate(random_actions()):
        observations, rewards, terminated, truncated, infos = env.step(acts)
        assert (env.simulator.qpos[live] == states[step, live, :24]).all()
        assert (env.simulator.qvel[live] == states[step, live, 24:]).all()
        assert (observations[live] == states[step, live, 2:]).all()
        assert (terminated == (ends[step] & live)).all()
        assert not truncated.any()
        assert not infos["diverged"].any()
        expected = gym_rewards[step] + 5.0 * terminated  # Humanoid-v5 gives no survival bonus in the last step
        np.testing.assert_allclose(rewards[live], expected[live], rtol=0, atol=1e-9)
        live &= ~terminated
        ended_early |= terminated.any() and live.any()
    assert ended_early, "no humanoid fell beside one that goes on: the test shows nothing of ends"
    env.close()


def test_a_direction_is_an_angle():
    angles = np.array([0.0, math.pi / 3, math.pi])
    ahead, left, env = (HumanoidDir().make_vector_env(3, num_threads=1) for _ in range(3))
    left.set_tasks([Direction(math.pi / 2)] * 3)
    env.set_tasks([Direction(angle) for angle in angles])
    for each in (ahead, left, env):
        each.reset(seed=0)
    for act in random_actions(3):
        beside = 5.0 - 0.1 * np.square(0.4 * act.astype(np.float64)).sum(1)
        vx, vy, along = (each.step(act)[1] - beside for each in (ahead, left, env))
        assert (vx != vy).all()
        np.testing.assert_allclose(along, np.cos(angles) * vx + np.sin(angles) * vy, rtol=0, atol=1e-12)


def test_the_action_limit_scales_the_policys_actions():
    env = HumanoidDir(action_limit=10.0).make_vector_env(1, num_threads=1)
    env.reset(seed=0)
    env.step(np.array([[5.0, -20.0, *[0.0] * 15]]))
    np.testing.assert_allclose(env.simulator.ctrl[0], [0.2, -0.4, *[0.0] * 15], rtol=1e-12, atol=1e-15)


def test_an_end_is_a_height_or_the_horizon(monkeypatch):
    heights = [0.99, 1.01, 1.99, 2.01]
    env = HumanoidDir(horizon=2).make_vector_env(4, num_threads=1)
    env.reset(seed=0)

    def step(num_steps, ids):
        env.simulator.qpos[:, 2] = heights
        return np.zeros(len(env.simulator.qpos[ids]), bool)

    monkeypatch.setattr(env.simulator, "step", step)
    assert env.step(np.zeros((4, 17)))[2].tolist() == [True, False, False, True]
    assert env.step(np.zeros((4, 17)))[3].tolist() == [False, True, True, False]


def test_directions_fill_the_circle_or_two_intervals():
    angles = [task.angle for task in HumanoidDir().sample(500, np.random.default_rng(0))]
    assert 0.0 <= min(angles) < 0.05
    assert 6.2 < max(angles) < 2 * math.pi
    family = HumanoidDir(10, high=1.0, test_low=2.0, test_high=3.0)
    assert check_task_distribution(family) == []
    assert family.splits == "disjoint"
    assert all(2.0 <= task.angle < 3.0 for task in family.sample(50, np.random.default_rng(0), split="test"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, r"task\.horizon = 0"),
        ({"action_limit": math.inf}, r"task\.action_limit = inf"),
        ({"low": -0.1}, r"task\.low = -0\.1: must be a number from 0\.0 to"),
        ({"high": 6.3}, r"task\.high = 6\.3: must be a number from 0\.0 to 6\.28"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        HumanoidDir(**settings)
