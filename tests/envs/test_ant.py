from __future__ import annotations

import math
import pickle

import gymnasium
import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs import batch
from metarl.envs.ant import AntDir, AntGoal, AntVel, ContactSimulator, Goal
from metarl.envs.locomotion import Direction, Velocity
from metarl.envs.simulator import LoopSimulator, Simulator
from metarl.testing.tasks import check_task_distribution

SEEDS = [0, 1, 77]
NUM_STEPS = 60
FORWARD_BACKWARD = [Direction(0.0), Direction(math.pi)]


def random_actions(num_steps=NUM_STEPS):
    return np.random.default_rng(5).uniform(-1, 1, (num_steps, len(SEEDS), 8)).astype(np.float32)


@pytest.fixture(scope="module")
def gymnasium_run():
    """First observations, then states, observations, rewards and ends of gymnasium's own environment, each
    [num_steps, num_seeds, ...]."""
    AntDir().make_vector_env(1).close()  # sends MuJoCo's messages to a logger
    acts = random_actions().astype(np.float64)
    settings = {"ctrl_cost_weight": 0.005, "healthy_reward": 0.05, "disable_env_checker": True}
    first, states, observations, rewards, ends = [], [], [], [], []
    for i, seed in enumerate(SEEDS):
        env = gymnasium.make("Ant-v5", **settings).unwrapped
        first.append(env.reset(seed=seed)[0])
        steps = [(*env.step(act)[:3], env.state_vector()) for act in acts[:, i]]
        for parts, values in zip((observations, rewards, ends, states), zip(*steps, strict=True), strict=True):
            parts.append(np.stack(values))
        env.close()
    return np.stack(first), *(np.stack(parts, 1) for parts in (states, observations, rewards, ends))


@pytest.mark.parametrize(
    ("loop", "num_threads", "contact_forces"),
    [(False, 1, False), (False, 2, False), (True, 2, False), (False, 1, True), (False, 2, True)],
)
def test_the_physics_is_gymnasiums_bit_for_bit(gymnasium_run, monkeypatch, loop, num_threads, contact_forces):
    if loop:
        monkeypatch.setattr(batch, "make_simulator", LoopSimulator)
    first, states, gym_observations, gym_rewards, ends = gymnasium_run
    size = 105 if contact_forces else 27
    env = AntDir(contact_forces=contact_forces).make_vector_env(len(SEEDS), num_threads=num_threads)
    expected_kind = ContactSimulator if contact_forces else LoopSimulator if loop else Simulator
    assert type(env.simulator) is expected_kind
    observations, _ = env.reset(seed=SEEDS)
    assert env.single_observation_space.shape == (size,)
    assert (observations == first[:, :size]).all()
    live = np.ones(len(SEEDS), bool)
    for step, acts in enumerate(random_actions()):
        observations, rewards, terminated, truncated, infos = env.step(acts)
        assert (env.simulator.qpos[live] == states[step, live, :15]).all()
        assert (env.simulator.qvel[live] == states[step, live, 15:]).all()
        assert (observations[live] == gym_observations[step, live, :size]).all()
        assert (terminated == (ends[step] & live)).all()
        assert not truncated.any()
        assert not infos["diverged"].any()
        # Ant-v5 gives no survival bonus in the last step, and its contacts always have a cost.
        contacts = np.square(gym_observations[step, :, 27:]).sum(1) * (0.0 if contact_forces else 5e-4)
        expected = gym_rewards[step] + 0.05 * terminated + contacts
        np.testing.assert_allclose(rewards[live], expected[live], rtol=0, atol=1e-9)
        live &= ~terminated
    assert live.any()
    assert not live.all(), "no ant fell: the test shows nothing of ends"
    assert (gym_observations[:, live, 27:] != 0).any()
    env.close()


def test_a_direction_is_an_angle():
    angles = np.array([0.0, math.pi / 3, math.pi])
    ahead, left, env = (AntDir().make_vector_env(3, num_threads=1) for _ in range(3))
    for other, angle in ((ahead, 0.0), (left, math.pi / 2)):
        other.set_tasks([Direction(angle)] * 3)
    env.set_tasks([Direction(angle) for angle in angles])
    for each in (ahead, left, env):
        each.reset(seed=0)
    for act in random_actions(5):
        beside = 0.05 - 0.005 * np.square(act.astype(np.float64)).sum(1)
        vx, vy, along = (each.step(act)[1] - beside for each in (ahead, left, env))
        assert (vx != vy).all()
        np.testing.assert_allclose(along, np.cos(angles) * vx + np.sin(angles) * vy, rtol=0, atol=1e-12)


def test_the_velocity_reward_is_one_at_the_target():
    forward, env = (family.make_vector_env(3, num_threads=1) for family in (AntDir(), AntVel()))
    targets = np.array([0.0, 1.5, 3.0])
    env.set_tasks([Velocity(target) for target in targets])
    forward.reset(seed=0)
    env.reset(seed=0)
    for act in random_actions(5):
        beside = 0.05 - 0.005 * np.square(act.astype(np.float64)).sum(1)
        velocities = forward.step(act)[1] - beside
        np.testing.assert_allclose(env.step(act)[1], 1.0 - np.abs(velocities - targets) + beside, rtol=0, atol=1e-12)


def test_the_goal_reward_is_the_distance_along_the_axes():
    env = AntGoal().make_vector_env(3, num_threads=1)
    goals = np.array([[0.0, 0.0], [1.0, -2.0], [-3.0, 0.0]])
    env.set_tasks([Goal(x, y) for x, y in goals.tolist()])
    env.reset(seed=0)
    for act in random_actions(5):
        rewards = env.step(act)[1]
        cost = 0.1 * np.square(act.astype(np.float64)).sum(1)
        distances = np.abs(env.simulator.qpos[:, :2] - goals).sum(1)
        np.testing.assert_allclose(rewards, -distances - cost, rtol=0, atol=0.02)  # the torso lags its positions


def test_an_ant_that_seeks_a_place_goes_on_after_a_fall(monkeypatch):
    heights = [0.19, 0.21, 0.99, 1.01]
    outside = [True, False, False, True]
    for family, ended in ((AntDir(), outside), (AntVel(), outside), (AntGoal(), [False] * 4)):
        env = family.make_vector_env(4, num_threads=1)
        env.reset(seed=0)
        monkeypatch.setattr(env.simulator, "step", put_at(env, heights))
        assert env.step(np.zeros((4, 8)))[2].tolist() == ended


def put_at(env, heights):
    """A physics step that does nothing but give the bodies these heights."""

    def step(num_steps, ids):
        env.simulator.qpos[:, 2] = heights
        return np.zeros(len(heights), bool)

    return step


@pytest.mark.parametrize("family", [AntDir(), AntGoal(), AntDir(contact_forces=True)])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_not_finite_truncates_with_reward_0(monkeypatch, family, number):
    env = family.make_vector_env(2, num_threads=1)
    env.reset(seed=0)
    step = env.simulator.step

    def broken_step(num_steps, ids):
        found = step(num_steps, ids)
        env.simulator.qvel[1, 3] = number
        return found

    monkeypatch.setattr(env.simulator, "step", broken_step)
    _, rewards, terminated, truncated, infos = env.step(np.full((2, 8), 0.5))
    assert rewards[0] != 0.0
    assert rewards[1] == 0.0
    assert not terminated.any()
    assert truncated.tolist() == infos["diverged"].tolist() == [False, True]


def test_contact_forces_are_paid_for():
    free, paid = (AntDir(contact_forces=forces).make_vector_env(3, num_threads=1) for forces in (False, True))
    free.reset(seed=SEEDS)
    paid.reset(seed=SEEDS)
    costs = []
    for act in random_actions(30):
        unpaid, (observations, rewards, *_) = free.step(act)[1], paid.step(act)
        costs.append(unpaid - rewards)
        np.testing.assert_allclose(costs[-1], 5e-4 * np.square(observations[:, 27:]).sum(1), rtol=0, atol=1e-12)
    assert np.max(costs) > 1e-4
    assert np.abs(observations[:, 27:]).max() <= 1.0


def test_an_ended_ant_keeps_its_contact_forces():
    env = AntDir(contact_forces=True).make_vector_env(3, num_threads=1)
    env.reset(seed=SEEDS)
    for act in random_actions():
        observations, _, terminated, *_ = env.step(act)
        if terminated.any():
            break
    after = env.step(np.zeros((3, 8)))[0]
    assert (after == observations).all(1).tolist() == terminated.tolist()


def test_the_action_limit_scales_the_policys_actions():
    wide, env = (AntVel(action_limit=limit).make_vector_env(2, num_threads=1) for limit in (10.0, 1.0))
    assert (wide.single_action_space.high == 10.0).all()
    wide.reset(seed=0)
    env.reset(seed=0)
    act = np.array([[0.5] * 8, [2.0, -3.0, *[0.25] * 6]])
    for _ in range(2):
        scaled, unscaled = wide.step(10.0 * act), env.step(act)
        np.testing.assert_array_equal(scaled[0], unscaled[0])
        np.testing.assert_array_equal(scaled[1], unscaled[1])
    np.testing.assert_array_equal(env.simulator.ctrl[1], [1.0, -1.0, *[0.25] * 6])


def test_the_horizon_is_the_settings():
    env = AntGoal(horizon=3).make_vector_env(2, num_threads=1)
    env.reset(seed=0)
    ends = [env.step(np.zeros((2, 8)))[3].tolist() for _ in range(3)]
    assert ends == [[False, False], [False, False], [True, True]]


def test_directions_are_two_tasks_with_equal_odds_or_fill_the_circle():
    two, every = AntDir(), AntDir(directions="any")
    assert two.splits == "identical"
    assert two.all_tasks() == two.all_tasks("train") == FORWARD_BACKWARD
    drawn = two.sample(2000, np.random.default_rng(0))
    assert set(drawn) == {*FORWARD_BACKWARD}
    assert abs(sum(task.angle for task in drawn) / math.pi - 1000) < 75
    assert every.splits == "same distribution"
    assert every.all_tasks() is None
    angles = [task.angle for task in every.sample(500, np.random.default_rng(0))]
    assert type(angles[0]) is float
    assert 0.0 <= min(angles) < 0.05
    assert 6.2 < max(angles) < 2 * math.pi


def test_goals_are_uniform_on_the_disc():
    tasks = AntGoal().sample(4000, np.random.default_rng(0))
    distances, angles = np.array([(math.hypot(task.x, task.y), math.atan2(task.y, task.x)) for task in tasks]).T
    assert 2.95 < distances.max() < 3.0
    assert abs((distances < 1.5).mean() - 0.25) < 0.03  # a quarter of the area, not half of the radius
    assert abs((np.abs(angles) < math.pi / 2).mean() - 0.5) < 0.03


def test_held_out_goals_lie_in_their_ring():
    family = AntGoal(high=2.0, test_low=2.0, test_high=3.0)
    assert family.splits == "disjoint"
    for split, (low, high) in (("train", (0.0, 2.0)), ("test", (2.0, 3.0))):
        tasks = family.sample(500, np.random.default_rng(0), split=split)
        distances = [math.hypot(task.x, task.y) for task in tasks]
        assert low <= min(distances) < low + 0.2
        assert high - 0.1 < max(distances) < high


@pytest.mark.parametrize(
    "family",
    [
        AntDir(10, directions="any", high=math.pi, test_low=math.pi, test_high=2 * math.pi, contact_forces=True),
        AntVel(10, high=2.0, test_low=2.0, test_high=3.0),
    ],
)
def test_the_contract(family):
    assert check_task_distribution(family) == []
    copy = pickle.loads(pickle.dumps(family))
    assert copy == family
    assert copy.splits == "disjoint"


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (AntDir, {"horizon": 0}, r"task\.horizon = 0: must be an integer >= 1"),
        (AntGoal, {"action_limit": -1.0}, r"task\.action_limit = -1\.0"),
        (AntDir, {"directions": "all"}, r"task\.directions"),
        (AntDir, {"high": 1.0}, r"task\.directions = 'forward-backward': must be 'any' where"),
        (AntDir, {"directions": "any", "high": 7.0}, r"task\.high = 7\.0: must be a number from 0\.0 to 6\.28"),
        (
            AntDir,
            {"directions": "any", "test_low": -1.0, "test_high": 0.0},
            r"task\.test_low = -1\.0: must be .* 0\.0 to",
        ),
        (AntVel, {"test_low": 2.0, "test_high": 4.0}, "outside the training interval"),
        (AntGoal, {"low": -1.0}, r"task\.low = -1\.0: must be a number >= 0"),
        (AntGoal, {"high": math.inf}, r"task\.high = inf: must be a number >= 0"),
    ],
)
def test_bad_settings_are_named(family, settings, message):
    with pytest.raises(InputError, match=message):
        family(**settings)
