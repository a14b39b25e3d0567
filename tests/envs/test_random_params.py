from __future__ import annotations

import dataclasses
import math
import pickle

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs import batch
from metarl.envs.random_params import HopperParams, Walker2dParams
from metarl.envs.simulator import LoopSimulator
from metarl.testing.tasks import check_task_distribution

NUM_STEPS = 60
SEEDS = [0, 1, 77, 3, 9]
BASES = {"body_mass": 1.5, "body_inertia": 1.5, "geom_friction": 1.5, "dof_damping": 1.3}
FAMILIES = {Walker2dParams: "Walker2d-v5", HopperParams: "Hopper-v5"}
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def some_tasks(family):
    """The robot as built, then random ones."""
    return [family().make_vector_env(1).default_task, *family().sample(len(SEEDS) - 1, np.random.default_rng(2))]


def some_actions(num_controls):
    return np.random.default_rng(5).uniform(-1, 1, (NUM_STEPS, len(SEEDS), num_controls)).astype(np.float32)


def gymnasium_env(family):
    family().make_vector_env(1).close()  # sends MuJoCo's messages to a logger
    return gymnasium.make(FAMILIES[family], disable_env_checker=True).unwrapped


def states(env):
    return np.concatenate((env.simulator.qpos, env.simulator.qvel), 1)


@pytest.fixture(scope="module", params=FAMILIES)
def gymnasium_run(request):
    """First observations, then observations, rewards, ends and states, [num_steps, num_seeds, ...].

    The first robot is gymnasium's own; the models of the others are changed by hand.
    """
    family = request.param
    first, runs = [], []
    for i, task in enumerate(some_tasks(family)):
        env = gymnasium_env(family)
        if i > 0:
            for field in BASES:
                values = getattr(env.model, field)
                values *= np.reshape(getattr(task, field), values.shape)
            mujoco.mj_setConst(env.model, env.data)
        first.append(env.reset(seed=SEEDS[i])[0])
        actions = some_actions(env.model.nu)[:, i].astype(np.float64)
        steps = [(*env.step(action)[:3], env.state_vector()) for action in actions]
        runs.append([np.stack(values) for values in zip(*steps, strict=True)])
        env.close()
    return family, np.stack(first), *(np.stack(parts, 1) for parts in zip(*runs, strict=True))


@pytest.mark.parametrize(("loop", "num_threads"), [(False, 1), (False, 2), (True, 1), (True, 2)])
def test_each_robot_of_a_batch_is_gymnasiums_with_its_own_model_bit_for_bit(
    gymnasium_run, monkeypatch, loop, num_threads
):
    if loop:
        monkeypatch.setattr(batch, "make_simulator", LoopSimulator)
    family, first, gym_observations, gym_rewards, ends, gym_states = gymnasium_run
    env = family().make_vector_env(len(SEEDS), num_threads=num_threads)
    assert isinstance(env.simulator, LoopSimulator) == loop
    env.set_tasks(some_tasks(family))
    observations, _ = env.reset(seed=SEEDS)
    assert observations.dtype == np.float64
    assert (observations == first).all()
    live, ended_early = np.ones(len(SEEDS), bool), False
    for step, actions in enumerate(some_actions(env.simulator.model.nu)):
        observations, rewards, terminated, truncated, infos = env.step(actions)
        assert (states(env)[live] == gym_states[step, live]).all()
        assert (observations[live] == gym_observations[step, live]).all()
        assert (terminated == (ends[step] & live)).all()
        assert not truncated.any()
        assert not infos["diverged"].any()
        expected = gym_rewards[step] + 1.0 * terminated  # gymnasium gives no survival bonus in the last step
        np.testing.assert_allclose(rewards[live], expected[live], rtol=0, atol=1e-12)
        live &= ~terminated
        ended_early |= terminated.any() and live.any()
    assert ended_early, "no robot fell beside one that goes on: the test shows nothing of ends"
    assert (np.abs(gym_states) > 10.0).any(), "no velocity was clipped in an observation"
    env.close()


@EACH_FAMILY
def test_factors_apply_to_the_robot_as_built_not_to_the_last_task(family, monkeypatch):
    as_built, light, heavy = some_tasks(family)[:3]
    actions = some_actions(3 if family is HopperParams else 6)[:10, :3]

    def run(env, tasks):
        env.set_tasks(tasks)
        env.reset(seed=0)
        return np.stack([(env.step(action), states(env))[1] for action in actions])

    tasks = [heavy, as_built, light]
    expected = run(family().make_vector_env(3, num_threads=1), tasks)
    for loop in (False, True):
        if loop:
            monkeypatch.setattr(batch, "make_simulator", LoopSimulator)
        env = family().make_vector_env(3, num_threads=1)
        run(env, [light, heavy, as_built])
        assert (run(env, tasks) == expected).all()
        assert (run(env, tasks) == expected).all()


@EACH_FAMILY
def test_a_task_changes_every_field_and_what_follows_from_it(family):
    env = family().make_vector_env(2, num_threads=1)
    as_built, task = some_tasks(family)[:2]
    env.set_tasks([as_built, task])
    env.reset(seed=0)
    before, after = (env.simulator.snapshot(i)[0] for i in range(2))
    for field in BASES:
        built = getattr(before, field)
        assert (built == getattr(env.simulator.model, field)).all()
        factors = np.reshape(getattr(task, field), built.shape)
        assert (factors != 1.0).all()
        np.testing.assert_array_equal(getattr(after, field), built * factors)
    assert after.body_mass[0] == 0.0
    np.testing.assert_allclose(after.body_subtreemass[0], after.body_mass.sum())
    assert (after.dof_invweight0 != before.dof_invweight0).all()


@EACH_FAMILY
@pytest.mark.parametrize(("field", "column"), [("body_inertia", 1), ("geom_friction", 0)])
def test_only_the_moment_about_the_planes_normal_and_the_sliding_friction_count(family, field, column):
    as_built, task = some_tasks(family)[:2]
    idle = np.reshape(getattr(task, field), (-1, 3)).copy()
    idle[:, column] = 1.0
    env = family().make_vector_env(3, num_threads=1)
    factors = [tuple(idle.ravel().tolist()), getattr(task, field)]
    env.set_tasks([as_built, *(dataclasses.replace(as_built, **{field: each}) for each in factors)])
    env.reset(seed=[0, 0, 0])
    env.simulator.qvel[:, :2] = 3.0, -2.0  # they come down and slide
    for actions in some_actions(env.simulator.model.nu)[:10, :1]:
        env.step(np.repeat(actions, 3, axis=0))
    built, with_idle, changed = states(env)
    np.testing.assert_array_equal(with_idle, built)
    assert (changed[1:] != built[1:]).all()


@EACH_FAMILY
def test_a_robot_is_healthy_where_gymnasium_says_so(family):
    gym_env = gymnasium_env(family)
    nq = gym_env.model.nq
    upright = np.zeros(2 * nq)
    upright[1] = 1.25
    cases = np.tile(upright, (15, 1))
    cases[:7, 1] = 0.7, 0.70001, 0.8, 0.80001, 2.0, 1.99999, 3.0
    cases[7:11, 2] = 0.2, -0.19999, 1.0, -0.99999
    cases[11:, [3, nq - 1, nq, 2 * nq - 1]] = np.diag([100.0, -99.99, -100.0, 150.0])
    env = family().make_vector_env(len(cases), num_threads=1)
    env.reset(seed=0)
    env.simulator.qpos[:], env.simulator.qvel[:] = cases[:, :nq], cases[:, nq:]
    healthy = []
    for case in cases:
        gym_env.data.qpos[:], gym_env.data.qvel[:] = case[:nq], case[nq:]
        healthy.append(gym_env.is_healthy)
    gym_env.close()
    assert any(healthy)
    env.simulator.step = lambda *_: np.zeros(len(cases), bool)  # the states stay as they are
    terminated = env.step(np.zeros(env.action_space.shape, np.float32))[2]
    assert (terminated == ~np.array(healthy)).all()


def test_a_hopper_that_spins_too_fast_ends_and_one_that_breaks_is_truncated():
    env = HopperParams().make_vector_env(3, num_threads=1)
    env.reset(seed=0)
    env.simulator.qvel[1, 5], env.simulator.qvel[2, 5] = 300.0, 1e11
    _, rewards, terminated, truncated, infos = env.step(np.zeros((3, 3)))
    assert terminated.tolist() == [False, True, False]
    assert truncated.tolist() == infos["diverged"].tolist() == [False, False, True]
    assert rewards[2] == 0.0


@EACH_FAMILY
def test_factors_fill_their_ranges(family):
    distribution = family(5)
    assert distribution.splits == "same distribution"
    assert check_task_distribution(distribution) == []
    tasks = distribution.sample(500, np.random.default_rng(0))
    assert tasks[:3] == distribution.sample(3, np.random.default_rng(0))
    for field, base in BASES.items():
        exponents = np.log([getattr(task, field) for task in tasks]) / math.log(base)
        assert (np.abs(exponents) <= 3.0).all()
        assert (exponents.min(0) < -2.8).all()
        assert (exponents.max(0) > 2.8).all()
        np.testing.assert_allclose(exponents.std(), math.sqrt(3.0), rtol=0.05)


@EACH_FAMILY
def test_test_factors_can_lie_beyond_those_of_training(family):
    distribution = family(5, log_scale_limit=1.0, test_log_scale_limit=1.5)
    assert distribution.splits == "disjoint"
    assert check_task_distribution(distribution) == []
    for split, least, most in (("train", 0.0, 1.0), ("test", 1.0, 1.5)):
        tasks = distribution.sample(300, np.random.default_rng(0), split=split)
        for field, base in BASES.items():
            exponents = np.log([getattr(task, field) for task in tasks]) / math.log(base)
            sizes = np.abs(exponents)
            assert least - 1e-12 <= sizes.min() < least + 0.05
            assert most - 0.05 < sizes.max() <= most + 1e-12
            assert 0.4 < (exponents > 0.0).mean() < 0.6


def test_the_settings_reach_the_environment():
    env = Walker2dParams(horizon=2, action_limit=10.0).make_vector_env(1, num_threads=1)
    assert env.single_observation_space.shape == (17,)
    assert (env.single_action_space.high == 10.0).all()
    env.reset(seed=0)
    assert env.step(np.array([[5.0, -20.0, 0.0, 0.0, 0.0, 0.0]]))[3].tolist() == [False]
    assert env.simulator.ctrl[0].tolist() == [0.5, -1.0, 0.0, 0.0, 0.0, 0.0]
    assert env.step(np.zeros((1, 6)))[3].tolist() == [True]
    assert HopperParams().make_vector_env(1, num_threads=1).single_observation_space.shape == (11,)


@EACH_FAMILY
def test_a_task_is_a_value_and_prints_short(family):
    task, other = family().sample(2, np.random.default_rng(0))
    copy = pickle.loads(pickle.dumps(task))
    assert copy == task != other
    assert hash(copy) == hash(task)
    assert type(task.body_mass[0]) is float
    assert repr(copy) == repr(task) != repr(other)
    assert len(repr(task)) < 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, r"task\.horizon = 0"),
        ({"action_limit": 0.0}, r"task\.action_limit = 0\.0"),
        ({"log_scale_limit": 0.0}, r"task\.log_scale_limit = 0\.0: must be a positive number <= 20\.0"),
        ({"log_scale_limit": 21.0}, r"task\.log_scale_limit = 21\.0"),
        ({"test_log_scale_limit": 3.0}, r"task\.test_log_scale_limit = 3\.0: must be .* task\.log_scale_limit = 3\.0"),
        ({"test_log_scale_limit": 21.0}, r"task\.test_log_scale_limit = 21\.0"),
        ({"test_log_scale_limit": math.nan}, r"task\.test_log_scale_limit = nan"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        HopperParams(**settings)
