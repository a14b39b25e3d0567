from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs.ant_maze import AntMazeEnv, AntMazeGoal
from metarl.envs.mazes import U_MAZE, Layout, MazeTask, cells
from metarl.testing.tasks import check_task_distribution

CELL = Layout(("###", "#.#", "###"))
HALL = Layout(("#####", "#...#", "#...#", "#...#", "#####"))


def make_env(layout, start, goal, num_envs, **settings):
    env = AntMazeEnv(num_envs, layout=layout, num_threads=1, **settings)
    env.set_tasks([MazeTask(layout, start, goal)] * num_envs)
    return env


def test_away_from_the_walls_it_is_gymnasiums_ant():
    env = make_env(HALL, (2, 2), (2, 2), 2, horizon=20)
    theirs = gymnasium.make("Ant-v5", include_cfrc_ext_in_observation=False, disable_env_checker=True)
    first, _ = env.reset(seed=[0, 7])
    data = theirs.unwrapped.data
    assert first.shape == (2, 29)
    assert (first[1, 2:] == theirs.reset(seed=7)[0]).all()
    for act in np.random.default_rng(0).uniform(-1, 1, (20, 2, 8)).astype(np.float32):
        seen = env.step(act)[0]
        theirs.step(act[1].astype(np.float64))
        assert (seen[1] == np.concatenate((data.qpos, data.qvel))).all()
    theirs.close()


@pytest.mark.parametrize(("x", "y"), [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_walls_stop_the_ant(x, y):
    env = make_env(CELL, (1, 1), (1, 1), 1, horizon=60)
    env.reset(seed=0)
    env.simulator.qvel[0, :2] = 8.0 * x, 8.0 * y
    farthest = 0.0
    for _ in range(60):
        seen = env.step(np.zeros((1, 8), np.float32))[0]
        farthest = max(farthest, np.abs(seen[:, :2]).max())
    assert 0.8 < farthest < 2.0 - 0.2


@pytest.mark.parametrize("seed", [1, 2])
def test_an_ant_that_gets_onto_a_wall_of_1_m_does_not_get_onto_these(seed):
    env = make_env(U_MAZE, (1, 1), (1, 2), 1)
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for step in range(130):
        if step % 5 == 0:
            action = rng.choice([-1.0, 1.0], (1, 8)).astype(np.float32)
        env.step(action)
        row, column = cells(env.simulator.qpos[0, :2], U_MAZE.walls.shape, env.cell_size)
        assert not U_MAZE.walls[row, column]


def test_the_reward_is_the_way_and_success_the_radius():
    dense = make_env(U_MAZE, (1, 1), (3, 1), 3)
    sparse = make_env(U_MAZE, (1, 1), (3, 1), 3, reward="sparse")
    for env in (dense, sparse):
        env.reset(seed=0)
        env.simulator.qpos[:, :2] = [(-4.0, 4.0), (4.0, 0.0), (-3.5, -4.0)]
        env.simulator.qvel[:] = 0.0
    act = np.zeros((3, 8), np.float32)
    seen, rewards, _, _, infos = dense.step(act)
    x, y = seen[:, :2].T
    np.testing.assert_allclose(rewards[:2], [-24.0 + x[0] + 4.0, -12.0 - y[1]], atol=1e-3)
    np.testing.assert_allclose(rewards[2], -(x[2] + 4.0))
    assert infos["success"].tolist() == [False, False, True]
    _, rewards, terminated, _, infos = sparse.step(act)
    assert rewards.tolist() == [0.0, 0.0, 1.0]
    assert infos["success"].tolist() == [False, False, True]
    assert not terminated.any()


def test_a_fallen_ant_goes_on_and_a_broken_one_does_not():
    env = make_env(HALL, (2, 2), (1, 1), 2)
    env.reset(seed=0)
    env.simulator.qpos[0, 3:7] = [0.0, 1.0, 0.0, 0.0]
    env.simulator.qvel[1, 3] = np.nan
    for step in range(5):
        _, _, terminated, truncated, infos = env.step(np.zeros((2, 8), np.float32))
        assert not terminated.any()
        assert truncated.tolist() == infos["diverged"].tolist() == [False, step == 0]


def test_a_task_of_another_layout_is_refused():
    env = make_env(HALL, (1, 1), (2, 2), 1)
    env.set_tasks([MazeTask(U_MAZE, (1, 1), (1, 2))])
    with pytest.raises(ValueError, match="the layout of these environments is Layout"):
        env.reset(seed=0)


@pytest.mark.parametrize("layout", ["u", "medium"])
def test_the_family_keeps_the_contract(layout):
    assert check_task_distribution(AntMazeGoal(layout=layout, horizon=10)) == []


def test_the_action_limit_scales_the_policys_actions():
    wide, env = (AntMazeGoal(action_limit=limit).make_vector_env(1, num_threads=1) for limit in (10.0, 1.0))
    task = AntMazeGoal().all_tasks()[0]
    for one in (wide, env):
        one.set_tasks([task])
        one.reset(seed=0)
    act = np.linspace(-1.5, 1.5, 8)[np.newaxis]
    assert (wide.step(10.0 * act)[0] == env.step(act)[0]).all()
    with pytest.raises(InputError, match=r"task\.action_limit = 0\.0"):
        AntMazeGoal(action_limit=0.0)
