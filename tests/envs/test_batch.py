from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import mujoco
import numpy as np
import pytest

from metarl.envs import batch
from metarl.envs.batch import BatchEnv
from metarl.envs.simulator import LoopSimulator, Simulator

THREADS = Path("/proc/self/task")

PENDULUM = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <light pos="0 -1 2"/>
    <body name="pole">
      <joint name="hinge" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0 0 -1" size="0.05" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" ctrllimited="true" ctrlrange="-2 6"/></actuator>
</mujoco>
"""

WITH_BOTH_SIMULATORS = pytest.mark.parametrize(
    ("kind", "num_threads"), [(Simulator, 1), (Simulator, 2), (LoopSimulator, 1), (LoopSimulator, 2)]
)


class Pendulum(BatchEnv):
    default_task = 1.0

    def __init__(self, num_envs, *, model=None, **kwargs):
        kwargs = {"frame_skip": 2, "horizon": 50, **kwargs}
        super().__init__(model or mujoco.MjModel.from_xml_string(PENDULUM), num_envs, **kwargs)
        self.limit = np.inf

    def _assign_tasks(self, ids, tasks):
        mass = np.ones((len(ids), 2))
        mass[:, 1] = tasks
        self.simulator.set_model_field("body_mass", ids, mass)
        self.simulator.set_constants(ids)

    def _rewards(self, ids, velocities, controls):
        self.controls = controls
        return velocities[:, 0]

    def _terminated(self, ids):
        return np.abs(self.simulator.qpos[ids, 0]) > self.limit


def use(monkeypatch, kind):
    if kind is LoopSimulator:
        monkeypatch.setattr(batch, "make_simulator", LoopSimulator)


def run(env, num_steps, seed=0):
    """States after every step under fixed actions."""
    rng = np.random.default_rng(seed)
    states = []
    for _ in range(num_steps):
        env.step(rng.uniform(-2, 6, (env.num_envs, 1)).astype(np.float32))
        states.append(np.concatenate((env.simulator.qpos, env.simulator.qvel), 1))
    return np.stack(states)


@WITH_BOTH_SIMULATORS
def test_a_diverged_simulation_is_reported_and_leaves_the_others_alone(monkeypatch, kind, num_threads):
    use(monkeypatch, kind)
    env, undisturbed = (Pendulum(3, num_threads=num_threads) for _ in range(2))
    assert type(env.simulator) is kind
    push = np.ones((3, 1), np.float32)
    for _ in range(3):  # again after a reset: the counters do not rise a second time by themselves
        env.reset(seed=4)
        undisturbed.reset(seed=4)
        env.simulator.qvel[1] = 1e11
        obs, rewards, terminated, truncated, infos = env.step(push)
        expected = undisturbed.step(push)
        assert infos["diverged"].tolist() == truncated.tolist() == [False, True, False]
        assert rewards[1] == 0.0
        assert not terminated.any()
        np.testing.assert_array_equal(obs[[0, 2]], expected[0][[0, 2]])
        np.testing.assert_array_equal(rewards[[0, 2]], expected[1][[0, 2]])
        frozen, rewards, terminated, truncated, infos = env.step(push)
        np.testing.assert_array_equal(frozen[1], obs[1])
        assert rewards[1] == 0.0
        assert not truncated.any()
        assert not infos["diverged"].any()


def test_an_action_that_is_not_a_number_is_a_divergence():
    env = Pendulum(2)
    env.reset(seed=0)
    _, rewards, _, truncated, infos = env.step(np.array([[np.nan], [1.0]], np.float32))
    assert infos["diverged"].tolist() == truncated.tolist() == [True, False]
    assert rewards[0] == 0.0


@WITH_BOTH_SIMULATORS
def test_each_simulation_has_the_model_of_its_task(monkeypatch, kind, num_threads):
    use(monkeypatch, kind)
    masses = [0.5, 1.0, 3.0]
    env = Pendulum(3, num_threads=num_threads, reset_noise=0.0)
    env.set_tasks(masses)
    env.reset(seed=0)
    states = run(env, 10)
    rng = np.random.default_rng(0)
    controls = rng.uniform(-2, 6, (10, 3, 1)).astype(np.float32)
    for i, mass in enumerate(masses):
        model = mujoco.MjModel.from_xml_string(PENDULUM)
        model.body_mass[1] = mass
        data = mujoco.MjData(model)
        mujoco.mj_setConst(model, data)
        mujoco.mj_forward(model, data)
        for step in range(10):
            data.ctrl[:] = controls[step, i]
            mujoco.mj_step(model, data, 2)
            assert (states[step, i] == [data.qpos[0], data.qvel[0]]).all()


@WITH_BOTH_SIMULATORS
def test_a_partial_step_or_reset_changes_no_bit_of_the_others(monkeypatch, kind, num_threads):
    use(monkeypatch, kind)
    env, free = (Pendulum(4, num_threads=num_threads) for _ in range(2))
    env.reset(seed=0)
    free.reset(seed=0)
    env.simulator.qpos[2] = 3.0
    env.limit = 2.5
    push = np.zeros((4, 1), np.float32)
    terminated = env.step(push)[2]
    free.step(push)
    assert terminated.tolist() == [False, False, True, False]
    others = [0, 1, 3]
    before = env.simulator.qpos[2].copy()
    np.testing.assert_array_equal(run(env, 3)[:, others], run(free, 3)[:, others])
    assert (env.simulator.qpos[2] == before).all()
    alone = env.reset(seed=9, options={"reset_mask": np.array([False, False, True, False])})[0]
    np.testing.assert_array_equal(alone[2], Pendulum(1).reset(seed=11)[0][0])
    np.testing.assert_array_equal(run(env, 3)[:, others], run(free, 3)[:, others])


def test_derived_fields_are_the_same_in_both_simulators(monkeypatch):
    found = []
    for kind in (Simulator, LoopSimulator):
        use(monkeypatch, kind)
        env = Pendulum(2)
        assert type(env.simulator) is kind
        positions = env.simulator.bind("xipos")
        env.reset(seed=0)
        angles = env.simulator.qpos[:, 0]
        np.testing.assert_allclose(positions[:, 1, 0], -0.5 * np.sin(angles), rtol=1e-12)  # not those before the reset
        run(env, 3)
        found.append(positions.copy())
    assert found[0][:, 1].any()
    np.testing.assert_array_equal(*found)


@WITH_BOTH_SIMULATORS
def test_a_breakdown_is_reported_in_its_own_step_only(monkeypatch, kind, num_threads):
    use(monkeypatch, kind)
    simulator = batch.make_simulator(mujoco.MjModel.from_xml_string(PENDULUM), 2, num_threads)
    everything = slice(None)
    for _ in range(2):
        assert simulator.step(2, everything).tolist() == [False, False]
        simulator.qvel[1] = 1e11
        assert simulator.step(2, everything).tolist() == [False, True]
    simulator.close()


def test_actions_are_mapped_onto_the_range_of_the_controls_and_clipped():
    env = Pendulum(4, action_limit=10.0)
    assert env.single_action_space.low == -10.0
    assert env.single_action_space.high == 10.0
    env.reset(seed=0)
    env.step(np.array([[-10.0], [0.0], [5.0], [30.0]], np.float32))
    assert env.controls[:, 0].tolist() == [-2.0, 2.0, 4.0, 6.0]
    assert env.simulator.ctrl[:, 0].tolist() == [-2.0, 2.0, 4.0, 6.0]
    raw = Pendulum(2)
    assert (raw.single_action_space.low, raw.single_action_space.high) == (-2.0, 6.0)
    raw.reset(seed=0)
    raw.step(np.array([[5.0], [30.0]], np.float32))
    assert raw.controls[:, 0].tolist() == [5.0, 6.0]


def test_the_reward_sees_the_velocity_of_the_step():
    env = Pendulum(2)
    env.reset(seed=0)
    before = env.simulator.qpos[:, 0].copy()
    rewards = env.step(np.ones((2, 1), np.float32))[1]
    np.testing.assert_allclose(rewards, (env.simulator.qpos[:, 0] - before) / 0.02, rtol=1e-12)
    assert rewards.any()


OLDER = """
import sys, warnings
sys.modules["mujoco.batch"] = None
from metarl.envs.simulator import LoopSimulator
from metarl.envs.half_cheetah import HalfCheetahDir
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    envs = [HalfCheetahDir().make_vector_env(1, num_threads=1) for _ in range(2)]
assert all(isinstance(env.simulator, LoopSimulator) for env in envs)
print(*(warning.message for warning in caught), sep="\\n")
"""


def test_older_mujoco_gets_the_loop_and_one_notice():
    done = subprocess.run([sys.executable, "-c", OLDER], capture_output=True, text=True, check=True)
    (notice,) = done.stdout.splitlines()
    assert "has no mujoco.batch" in notice


def test_mujocos_solver_bug_is_announced(monkeypatch):
    monkeypatch.setattr(mujoco, "__version__", "4.0.0")
    sparse = mujoco.MjModel.from_xml_string(PENDULUM.replace("<option", '<option jacobian="sparse"'))
    with pytest.warns(RuntimeWarning, match=r"MuJoCo 4\.0\.0 computes wrong accelerations"):
        Pendulum(1, model=sparse)
    Pendulum(1)  # warnings are errors


def test_negative_thread_numbers_are_refused():
    with pytest.raises(ValueError, match="num_threads = -1"):
        Pendulum(2, num_threads=-1)


@pytest.mark.skipif(not THREADS.is_dir(), reason="counts threads through /proc")
@pytest.mark.parametrize("kind", [Simulator, LoopSimulator])
def test_close_ends_the_threads(monkeypatch, kind):
    use(monkeypatch, kind)
    before = len(list(THREADS.iterdir()))
    env = Pendulum(6, num_threads=6)
    env.reset(seed=0)
    run(env, 2)
    assert len(list(THREADS.iterdir())) > before
    env.close()
    deadline = time.monotonic() + 10.0
    while len(list(THREADS.iterdir())) > before and time.monotonic() < deadline:
        time.sleep(0.01)  # a joined thread may stay listed for a moment
    assert len(list(THREADS.iterdir())) == before
    env.close()


QUIET = f"""
import mujoco
import numpy as np
from metarl.envs.simulator import make_simulator
from metarl.envs.half_cheetah import HalfCheetahDir
if ready_model:
    simulator = make_simulator(mujoco.MjModel.from_xml_string({PENDULUM!r}), 2, 1)
    simulator.qvel[0] = 1e11
    assert simulator.step(1, slice(None)).any()
    raise SystemExit
env = HalfCheetahDir().make_vector_env(4, num_threads=2)
env.reset(seed=0)
env.simulator.qvel[1:3] = 1e11
assert env.step(np.zeros((4, 6)))[4]["diverged"].tolist() == [False, True, True, False]
"""


@pytest.mark.parametrize("ready_model", [False, True])
def test_mujoco_writes_nothing_to_the_terminal_or_the_working_directory(tmp_path, ready_model):
    command = [sys.executable, "-c", f"ready_model = {ready_model}{QUIET}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


RENDER = """
import numpy as np
try:
    from metarl.envs import batch
    from metarl.envs.half_cheetah import HalfCheetahDir
    env = HalfCheetahDir().make_vector_env(2, num_threads=1)
    env.reset(seed=0)
    large = env.render_simulation(0, width=700, height=500)
except RuntimeError as error:
    print(error)
    raise SystemExit(3)
assert large.shape == (500, 700, 3) and large.dtype == np.uint8 and large.std() > 5

def image(index):
    return env.render_simulation(index, width=64, height=48)

def paint(index):
    env.simulator.set_model_field("geom_rgba", np.array([index]), np.ones((1, env.simulator.model.ngeom, 4)))

def side_view(distance):
    return env.render_simulation(0, width=64, height=48, side_view=distance).astype(int)

state = env.simulator.qpos.copy()
batch._MOST_RENDERERS = 1
first, second = image(0), image(1)
assert len(env._renderers) == 1
batch._MOST_RENDERERS = 2
assert (first == image(0)).all() and (second == image(1)).all() and (first != second).any()
assert len(env._renderers) == 2
assert (state == env.simulator.qpos).all()
start = side_view(3.0)
assert (start == side_view(3.0)).all() and (start != side_view(5.0)).any()
env.simulator.qpos[0, 0] += 1.0
moved = np.abs(side_view(3.0) - start).sum((0, 2))
assert not moved[:16].any() and moved[48:].all()
paint(1)
env.reset(seed=[0, 0])
painted = image(1)
assert (first == image(0)).all() and (first != painted).any()
paint(0)
env.reset(seed=0)
assert (image(0) == painted).all()
env.close()
"""


@pytest.mark.parametrize("back_end", ["egl", "osmesa", "glfw"])
def test_rendering_shows_one_simulation_or_says_what_is_missing(back_end):
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | {"MUJOCO_GL": back_end}
    command = [sys.executable, "-c", RENDER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        assert done.returncode == 3, done.stderr
        assert "set MUJOCO_GL=egl (apt package libegl1)" in done.stdout
    assert done.stderr == ""
