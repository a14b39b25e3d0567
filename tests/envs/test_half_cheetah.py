from __future__ import annotations

import pickle

import gymnasium
import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs import batch
from metarl.envs.half_cheetah import Direction, HalfCheetahDir, HalfCheetahVel, Velocity
from metarl.envs.simulator import LoopSimulator

SEEDS = [0, 1, 77]
NUM_STEPS = 200


def random_actions():
    return np.random.default_rng(5).uniform(-1, 1, (NUM_STEPS, len(SEEDS), 6)).astype(np.float32)


@pytest.fixture(scope="module")
def gymnasium_run():
    """First observations, then qpos, qvel and rewards of gymnasium's own environment, [num_steps, num_seeds, ...]."""
    HalfCheetahDir().make_vector_env(1).close()  # sends MuJoCo's messages to a logger
    acts = random_actions().astype(np.float64)
    first, runs = [], []
    for i, seed in enumerate(SEEDS):
        env = gymnasium.make("HalfCheetah-v5", ctrl_cost_weight=0.05, disable_env_checker=True)
        first.append(env.reset(seed=seed)[0])
        data = env.unwrapped.data
        run = []
        for step in range(NUM_STEPS):
            reward = env.step(acts[step, i])[1]
            run.append(np.concatenate((data.qpos, data.qvel, [reward])))
        runs.append(run)
        env.close()
    return np.stack(first), np.stack(runs, 1)


@pytest.mark.parametrize(("loop", "num_threads"), [(False, 1), (False, 2), (True, 1), (True, 2)])
def test_the_physics_is_gymnasiums_bit_for_bit(gymnasium_run, monkeypatch, loop, num_threads):
    if loop:
        monkeypatch.setattr(batch, "make_simulator", LoopSimulator)
    first, expected = gymnasium_run
    env = HalfCheetahDir().make_vector_env(len(SEEDS), num_threads=num_threads)
    assert isinstance(env.simulator, LoopSimulator) == loop
    observations, _ = env.reset(seed=SEEDS)
    assert observations.dtype == np.float64
    assert (observations == first).all()
    for step, acts in enumerate(random_actions()):
        observations, rewards, terminated, truncated, infos = env.step(acts)
        assert (env.simulator.qpos == expected[step, :, :9]).all()
        assert (env.simulator.qvel == expected[step, :, 9:18]).all()
        assert (observations == expected[step, :, 1:18]).all()
        np.testing.assert_allclose(rewards, expected[step, :, 18], rtol=0, atol=1e-12)
        assert not terminated.any()
        assert not infos["diverged"].any()
        assert truncated.all() == truncated.any() == (step == NUM_STEPS - 1)
    env.close()


def test_the_task_reaches_its_simulation():
    acts = random_actions()[:5]
    forward, mixed = (HalfCheetahDir().make_vector_env(3, num_threads=1) for _ in range(2))
    forward.set_tasks([Direction(1)] * 3)
    mixed.set_tasks([Direction(1), Direction(-1), Direction(-1)])
    for env in (forward, mixed):
        env.reset(seed=0)
    for act in acts:
        ahead, both = forward.step(act)[1], mixed.step(act)[1]
        cost = 0.05 * np.square(act.astype(np.float64)).sum(1)
        assert both[0] == ahead[0]
        np.testing.assert_allclose(both[1:] + cost[1:], -(ahead + cost)[1:], rtol=1e-12)


def test_the_velocity_reward_is_the_distance_to_the_target():
    forward = HalfCheetahDir().make_vector_env(3, num_threads=1)
    env = HalfCheetahVel().make_vector_env(3, num_threads=1)
    targets = np.array([0.0, 1.5, 2.0])
    env.set_tasks([Velocity(target) for target in targets])
    forward.reset(seed=0)
    env.reset(seed=0)
    for act in random_actions()[:5]:
        cost = 0.05 * np.square(act.astype(np.float64)).sum(1)
        velocities = forward.step(act)[1] + cost
        np.testing.assert_allclose(env.step(act)[1], -np.abs(velocities - targets) - cost, rtol=1e-12)


def test_the_action_limit_scales_the_policys_actions():
    wide, plain = HalfCheetahDir(action_limit=10.0), HalfCheetahDir()
    wide_env, env = (family.make_vector_env(2, num_threads=1) for family in (wide, plain))
    assert (wide_env.single_action_space.high == 10.0).all()
    wide_env.reset(seed=0)
    env.reset(seed=0)
    act = np.array([[0.5, -0.25, 1.0, -1.0, 0.0, 0.125], [2.0, -3.0, 0.5, 0.5, 0.5, 0.5]])
    for _ in range(3):
        scaled, unscaled = wide_env.step(10.0 * act), env.step(act)
        np.testing.assert_array_equal(scaled[0], unscaled[0])
        np.testing.assert_array_equal(scaled[1], unscaled[1])
    np.testing.assert_array_equal(env.simulator.ctrl[1], [1.0, -1.0, 0.5, 0.5, 0.5, 0.5])


def test_the_horizon_is_the_settings():
    env = HalfCheetahVel(horizon=3).make_vector_env(2, num_threads=1)
    env.reset(seed=0)
    ends = [env.step(np.zeros((2, 6)))[3].tolist() for _ in range(3)]
    assert ends == [[False, False], [False, False], [True, True]]


def test_directions_are_two_tasks_with_equal_odds():
    family = HalfCheetahDir()
    assert family.splits == "identical"
    assert family.all_tasks() == family.all_tasks("train") == [Direction(-1), Direction(1)]
    drawn = family.sample(2000, np.random.default_rng(0))
    assert set(drawn) == {Direction(-1), Direction(1)}
    assert abs(sum(task.sign for task in drawn)) < 150
    assert drawn == family.sample(2000, np.random.default_rng(0))
    assert type(drawn[0].sign) is int


def test_velocities_fill_their_interval():
    family = HalfCheetahVel(low=1.0, high=3.0)
    assert family.splits == "same distribution"
    assert family.all_tasks() is None
    for split in ("train", "test"):
        targets = [task.target for task in family.sample(500, np.random.default_rng(0), split=split)]
        assert 1.0 <= min(targets) < 1.05
        assert 2.95 < max(targets) < 3.0
    assert type(targets[0]) is float


def test_held_out_velocities_are_for_test_only():
    family = HalfCheetahVel(test_low=2.0, test_high=3.0)
    assert family.splits == "disjoint"
    assert max(task.target for task in family.sample(500, np.random.default_rng(0))) < 2.0
    targets = [task.target for task in family.sample(500, np.random.default_rng(0), split="test")]
    assert 2.0 <= min(targets) < max(targets) < 3.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, r"task\.horizon = 0: must be an integer >= 1"),
        ({"action_limit": 0.0}, r"task\.action_limit = 0\.0"),
        ({"action_limit": float("nan")}, r"task\.action_limit = nan"),
        ({"low": 2.0}, r"task\.high = 2\.0: must be above task\.low = 2\.0"),
        ({"low": float("nan")}, r"task\.low = nan"),
        ({"test_low": 2.0}, r"task\.test_high = None: must be given with"),
        ({"test_high": 2.0}, r"task\.test_low = None: must be given with"),
        ({"test_low": 3.0, "test_high": 2.5}, r"task\.test_high = 2\.5"),
        ({"test_low": 1.9, "test_high": 2.5}, "outside the training interval"),
        ({"test_low": -1.0, "test_high": 0.1}, "outside the training interval"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        HalfCheetahVel(**settings)


def test_a_distribution_survives_pickling():
    family = HalfCheetahVel(horizon=50, test_low=2.0, test_high=3.0)
    copy = pickle.loads(pickle.dumps(family))
    assert copy == family
    assert copy.splits == "disjoint"
