from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from metarl.envs.vector import TaskBatchEnv

HORIZON = 6
OBSERVATIONS = Box(-np.inf, np.inf, (1,), np.float32)
ACTIONS = Box(-1.0, 1.0, (1,), np.float32)


class Walk(TaskBatchEnv):
    """A point that starts at random, moves by its action and ends beyond the task, a limit."""

    default_task = 2.0

    def __init__(self, num_envs, **kwargs):
        super().__init__(num_envs, OBSERVATIONS, ACTIONS, horizon=HORIZON, **kwargs)
        self.limits = np.zeros(num_envs)
        self.positions = np.zeros(num_envs)
        self.advanced = []

    def _assign_tasks(self, ids, tasks):
        self.limits[ids] = tasks

    def _reset(self, ids, rngs):
        self.positions[ids] = [rng.uniform() for rng in rngs]

    def _advance(self, actions, ids):
        self.advanced.append(np.arange(self.num_envs)[ids].tolist())
        self.positions[ids] += actions[:, 0].astype(np.float64)
        return self.positions[ids].copy(), self.positions[ids] > self.limits[ids], False

    def _observe(self):
        return self.positions[:, None].astype(np.float32)


class SingleWalk(gymnasium.Env):
    observation_space = OBSERVATIONS
    action_space = ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform()
        return np.array([self.position], np.float32), {}

    def step(self, action):
        self.position += float(action[0])
        return np.array([self.position], np.float32), self.position, self.position > 2.0, False, {}


def actions(rng, num_envs=4):
    return rng.uniform(-0.2, 1.0, (num_envs, 1)).astype(np.float32)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_autoreset_mode_does_what_gymnasium_does(mode):
    ours = Walk(4, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: TimeLimit(SingleWalk(), HORIZON)] * 4, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] == mode
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    rng = np.random.default_rng(0)
    ends = np.zeros(2, int)
    for _ in range(60):
        acts = actions(rng)
        (obs, rewards, terminated, truncated, infos), expected = ours.step(acts), theirs.step(acts)
        np.testing.assert_array_equal(obs, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(terminated, expected[2])
        np.testing.assert_array_equal(truncated, expected[3] & ~expected[2])
        assert obs.dtype == np.float32
        assert rewards.dtype == np.float64
        assert terminated.dtype == truncated.dtype == np.bool_
        assert ("final_obs" in infos) == ("final_obs" in expected[4])
        if "final_obs" in infos:
            np.testing.assert_array_equal(infos["_final_obs"], expected[4]["_final_obs"])
            np.testing.assert_array_equal(infos["_final_info"], expected[4]["_final_info"])
            for i in np.flatnonzero(infos["_final_obs"]):
                np.testing.assert_array_equal(infos["final_obs"][i], expected[4]["final_obs"][i])
        over = terminated | truncated
        ends += [terminated.sum(), truncated.sum()]
        if mode == AutoresetMode.DISABLED and over.any():
            ours_again = ours.reset(options={"reset_mask": over})[0]
            np.testing.assert_array_equal(ours_again, theirs.reset(options={"reset_mask": over})[0])
    assert ends.min() > 3


def test_without_autoreset_the_ended_stay_frozen():
    env = Walk(3)
    env.set_tasks([0.5, 100.0, 100.0])
    env.reset(seed=0)
    push = np.ones((3, 1), np.float32)
    obs, _, terminated, truncated, _ = env.step(push)
    assert terminated.tolist() == [True, False, False]
    for step in range(2, HORIZON + 3):
        after, rewards, terminated, truncated, infos = env.step(push)
        assert after[0] == obs[0]
        assert rewards[0] == 0.0
        assert not terminated.any()
        assert truncated.tolist() == ([False, True, True] if step == HORIZON else [False] * 3)
        assert not infos["diverged"].any()
    assert env.advanced == [[0, 1, 2]] + [[1, 2]] * (HORIZON - 1)


def test_a_step_at_the_horizon_that_ends_the_mdp_is_not_truncated():
    env = Walk(2)
    env.set_tasks([HORIZON - 0.5, 100.0])
    env.reset(seed=[0, 0])
    env.positions[:] = 0.0
    for _ in range(HORIZON):
        _, _, terminated, truncated, _ = env.step(np.ones((2, 1), np.float32))
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, True]


def test_tasks_hold_from_the_next_reset_of_each_sub_environment():
    env = Walk(3)
    env.reset(seed=0)
    env.set_tasks([5.0, 6.0, 7.0])
    assert env.tasks == (5.0, 6.0, 7.0)
    assert env.limits.tolist() == [2.0, 2.0, 2.0]
    env.reset(options={"reset_mask": np.array([False, True, False])})
    assert env.limits.tolist() == [2.0, 6.0, 2.0]
    env.reset()
    assert env.limits.tolist() == [5.0, 6.0, 7.0]


def test_a_trajectory_depends_on_its_seed_and_not_on_its_place():
    env, other = Walk(3), Walk(3)
    first = env.reset(seed=[7, 8, 9])[0]
    np.testing.assert_array_equal(other.reset(seed=[9, 7, 8])[0], first[[2, 0, 1]])
    np.testing.assert_array_equal(Walk(3).reset(seed=7)[0], first)
    assert len(np.unique(first)) == 3


def test_without_a_seed_the_generators_go_on():
    env, other = Walk(2), Walk(2)
    first = env.reset(seed=1)[0]
    second = env.reset()[0]
    assert (first != second).all()
    other.reset(seed=1)
    mixed = other.reset(seed=[None, 1])[0]
    assert mixed[0] == second[0]
    assert mixed[1] == Walk(1).reset(seed=1)[0]


def test_returned_observations_are_not_overwritten():
    env = Walk(2)
    first = env.reset(seed=1)[0]
    kept = first.copy()
    env.step(np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(first, kept)


def test_wrong_use_is_refused_in_words():
    env = Walk(2)
    with pytest.raises(gymnasium.error.ResetNeeded, match="before the first reset"):
        env.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="3 tasks for 2 sub-environments"):
        env.set_tasks([1, 2, 3])
    with pytest.raises(ValueError, match="1 seeds for 2"):
        env.reset(seed=[1])
    for wrong in (-1, 2**64):
        with pytest.raises(ValueError, match=rf"seed {wrong} is not in \[0, 2\^64\)"):
            env.reset(seed=[0, wrong])
    with pytest.raises(TypeError, match="numpy array of bool"):
        env.reset(options={"reset_mask": [True, False]})
    with pytest.raises(ValueError, match="a True value"):
        env.reset(options={"reset_mask": np.zeros(2, bool)})
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(2, 1\)"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match="at least 1"):
        Walk(0)


def test_a_family_without_a_default_task_asks_for_tasks():
    class Choosy(Walk):
        default_task = None

    with pytest.raises(ValueError, match="Choosy has no default task; call set_tasks"):
        Choosy(2).reset()


def test_the_package_cannot_be_imported_under_its_folders_name():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", "import envs"], cwd=root, capture_output=True, text=True, check=False)
    assert "ImportError: write `import metarl.envs`, not `import envs`" in done.stderr


def test_importing_the_package_does_not_import_mujoco():
    code = "import sys, metarl.envs; sys.exit('mujoco' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
