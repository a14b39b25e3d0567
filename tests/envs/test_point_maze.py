from __future__ import annotations

import mujoco
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from metarl.core.errors import InputError
from metarl.envs import batch, point_maze
from metarl.envs.maze_robots import wall_boxes
from metarl.envs.mazes import Layout, MazeTask, cells
from metarl.envs.point_maze import PointMazeEnv, PointMazeGoal, PointMazeLayout, ray_lengths
from metarl.envs.simulator import LoopSimulator
from metarl.testing.tasks import check_task_distribution

ROOM = Layout(("#####", "#...#", "#...#", "#...#", "#####"))
CELL = Layout(("#####", "#####", "##.##", "#####", "#####"))
CORRIDOR = Layout(("#####", "#####", "#...#", "#####", "#####"))
SIDES = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)


def make_env(tasks, *, reset_noise=0.1, **settings):
    settings = {"shape": tasks[0].layout.walls.shape, "num_threads": 1, **settings}
    env = PointMazeEnv(len(tasks), **settings)
    env.reset_noise = reset_noise
    env.set_tasks(tasks)
    return env


def middle(layout):
    return MazeTask(layout, (2, 2), (2, 2))


def cells_of(env):
    """The cell in which each point's centre is, [num_envs, 2]."""
    return cells(env.simulator.qpos, env.tasks[0].layout.walls.shape, env.cell_size)


def walled_in(env):
    """Whether each point's centre is in a wall, [num_envs]."""
    return np.array([task.layout.walls[tuple(cell)] for task, cell in zip(env.tasks, cells_of(env), strict=True)])


def test_walls_stop_the_point_on_every_side_of_every_layout():
    rooms = {ROOM: [1.5] * 4, CELL: [0.5] * 4, CORRIDOR: [1.5, 0.5, 1.5, 0.5]}
    tasks = [middle(layout) for layout in rooms for _ in SIDES]
    env = make_env(tasks, horizon=40)
    env.reset(seed=0)
    for _ in range(40):
        env.step(np.tile(SIDES, (len(rooms), 1)))
    reached = (env.simulator.qpos * np.tile(SIDES, (len(rooms), 1))).sum(1)
    expected = np.concatenate(list(rooms.values())) - point_maze.RADIUS
    np.testing.assert_allclose(reached, expected, atol=0.02)
    env.close()


def test_nobody_gets_through_a_wall_at_full_speed():
    tasks = PointMazeLayout().sample(40, np.random.default_rng(0))
    env = make_env(tasks, horizon=200)
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    cells_seen, speed = set(), 0.0
    for step in range(200):
        if step % 5 == 0:
            actions = rng.choice([-1.0, 1.0], (40, 2)).astype(np.float32)
        env.step(actions)
        assert not walled_in(env).any()
        speed = max(speed, np.abs(env.simulator.qvel).max())
        cells_seen |= {(i, *cell) for i, cell in enumerate(cells_of(env).tolist())}
    assert speed > 2.0
    assert len(cells_seen) > 4 * 40
    env.close()


@pytest.mark.parametrize("loop", [False, True])
def test_mixed_layouts_move_as_each_compiled_alone(loop, monkeypatch):
    if loop:
        monkeypatch.setattr(batch, "make_simulator", LoopSimulator)
    tasks = PointMazeLayout().sample(4, np.random.default_rng(3))
    env = make_env([*tasks, tasks[0]], num_threads=2)
    env.reset(seed=0)
    rng = np.random.default_rng(4)
    actions = rng.choice([-1.0, 1.0], (12, 1, 5, 2)).repeat(5, 1).reshape(-1, 5, 2)
    alone = [compiled(task.layout, start) for task, start in zip(env.tasks, env.simulator.qpos, strict=True)]
    for (_, data), velocity in zip(alone, env.simulator.qvel, strict=True):
        data.qvel[:] = velocity
    touched = 0
    for action in actions:
        env.step(action)
        for i, (model, data) in enumerate(alone):
            data.ctrl[:] = action[i]
            mujoco.mj_step(model, data, point_maze.FRAME_SKIP)
            touched += data.ncon
            assert (data.qpos == env.simulator.qpos[i]).all()
            assert (data.qvel == env.simulator.qvel[i]).all()
    assert touched > 50
    env.close()


def compiled(layout, position):
    """A model compiled with its walls in place, and its data."""
    walls = "".join(
        f'<geom type="box" pos="{x!r} {y!r} {z!r}" size="{a!r} {b!r} {c!r}" contype="0"/>'
        for (x, y, z), (a, b, c) in wall_boxes(layout, PointMazeEnv.cell_size, point_maze.WALL_HEIGHT).tolist()
    )
    text = point_maze._MODEL.format(walls=walls, radius=point_maze.RADIUS, goal_radius=0.4, extent=9, camera=9)
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    data.qpos[:] = position
    return model, data


def test_a_new_task_replaces_the_walls_of_the_old():
    env = make_env([middle(CELL), middle(ROOM)], num_rays=4, horizon=20)
    fresh = make_env([middle(ROOM), middle(CELL)], num_rays=4, horizon=20)
    env.reset(seed=0)
    env.set_tasks(fresh.tasks)
    first, again = env.reset(seed=5)[0], fresh.reset(seed=5)[0]
    assert (first == again).all()
    for _ in range(20):
        act = np.ones((2, 2), np.float32)
        assert (env.step(act)[0] == fresh.step(act)[0]).all()


def test_the_observation_is_position_velocity_and_rays():
    tasks = [MazeTask(layout, (2, 1), (2, 3)) for layout in (CORRIDOR, ROOM)]
    env = make_env(tasks, num_rays=4, reset_noise=0.0)
    first, _ = env.reset(seed=0)
    still = [-1.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(first, [[*still, 2.5, 0.5, 0.5, 0.5], [*still, 2.5, 1.5, 0.5, 1.5]], atol=1e-12)
    seen = env.step(np.array([[1, 0], [0, 1]], np.float32))[0]
    x, y = env.simulator.qpos.T
    top = np.array([0.5, 1.5])
    assert (seen[:, :4] == np.concatenate((env.simulator.qpos, env.simulator.qvel), 1)).all()
    assert x[0] > -1.0
    assert y[1] > 0.0
    np.testing.assert_allclose(seen[:, 4:], np.stack((1.5 - x, top - y, 1.5 + x, top + y), 1))


def test_rays_end_at_the_first_wall():
    walls = np.stack((ROOM.walls, CORRIDOR.walls))
    angles = np.pi * np.arange(8) / 4
    rays = np.stack((-np.sin(angles), np.cos(angles)), 1)
    lengths = ray_lengths(walls, np.array([[1.25, 1.5], [2.5, 2.0]]), rays)
    root = np.sqrt(2.0)
    np.testing.assert_allclose(lengths[0], [2.5, 0.25 * root, 0.25, 0.25 * root, 0.5, 0.5 * root, 2.75, 2.5 * root])
    np.testing.assert_allclose(lengths[1], [2.0, 0.5 * root, 0.5, 0.5 * root, 1.0, 0.5 * root, 0.5, 0.5 * root])


def test_rays_agree_with_small_steps_along_them():
    rng = np.random.default_rng(0)
    layouts = [task.layout for task in PointMazeLayout().sample(20, rng)]
    places = np.array([rng.permutation(layout.free_cells)[0] for layout in layouts]) + rng.uniform(0.1, 0.9, (20, 2))
    angles = rng.uniform(0.0, 2.0 * np.pi, 6)
    rays = np.stack((np.sin(angles), np.cos(angles)), 1)
    lengths = ray_lengths(np.stack([layout.walls for layout in layouts]), places, rays)
    for layout, place, row in zip(layouts, places, lengths, strict=True):
        for ray, length in zip(rays, row, strict=True):
            inside = np.floor(place + np.linspace(0.0, length - 1e-6, 50)[:, None] * ray).astype(int)
            assert not layout.walls[tuple(inside.T)].any()
            assert layout.walls[tuple(np.floor(place + (length + 1e-6) * ray).astype(int))]


def test_the_dense_reward_is_the_way_around_the_wall():
    layout = Layout(("#####", "#...#", "#.#.#", "#.#.#", "#####"))
    env = make_env([MazeTask(layout, (3, 1), (3, 3))] * 2, reset_noise=0.0)
    env.reset(seed=0)
    _, rewards, *_ = env.step(np.array([[0, 0], [0, 1]], np.float32))
    risen = env.simulator.qpos[1, 1] + 1.0
    assert 0.0 < risen < 0.5
    np.testing.assert_allclose(rewards, [-6.0, -6.0 + risen])


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_arriving_is_success_ends_nothing_and_pays_while_it_lasts(mode):
    task = MazeTask(CORRIDOR, (2, 2), (2, 3))
    settings = {"reward": "sparse", "horizon": 8, "autoreset_mode": mode, "reset_noise": 0.0}
    env = make_env([task, task], **settings)
    env.reset(seed=0)
    act = np.array([[1, 0], [0, 0]], np.float32)
    for step in range(1, 9):
        _, rewards, terminated, truncated, infos = env.step(act)
        near = step >= 5
        assert infos["success"].dtype == bool
        assert infos["success"].tolist() == [near, False]
        assert infos["_success"].all()
        assert rewards.tolist() == [float(near), 0.0]
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (step == 8)
    if mode == AutoresetMode.SAME_STEP:
        assert infos["final_info"]["success"].tolist() == [True, False]
    _, rewards, _, _, infos = env.step(act)
    assert infos["success"].tolist() == [False, False]
    assert rewards.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_broken_simulation_is_told_and_no_success(number, monkeypatch):
    env = make_env([middle(ROOM)] * 2, num_rays=8)
    env.reset(seed=0)
    step = env.simulator.step

    def break_last(num_steps, ids):
        broken = step(num_steps, ids)
        env.simulator.qpos[0] = number
        return broken

    monkeypatch.setattr(env.simulator, "step", break_last)
    _, rewards, _, truncated, infos = env.step(np.zeros((2, 2), np.float32))
    assert infos["diverged"].tolist() == truncated.tolist() == [True, False]
    assert infos["success"].tolist() == [False, True]
    assert rewards[0] == 0.0


def test_a_layout_of_another_shape_is_refused():
    env = make_env([PointMazeLayout(num_rows=9).sample(1, np.random.default_rng(0))[0]])
    env.set_tasks([middle(ROOM)])
    with pytest.raises(ValueError, match=r"must have \(9, 7\) rows and columns"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    "family",
    [
        PointMazeGoal(),
        PointMazeGoal(layout="u", reward="sparse"),
        PointMazeLayout(),
        PointMazeLayout(num_rows=5, num_columns=9, num_rays=0),
    ],
)
def test_the_families_keep_the_contract(family):
    assert check_task_distribution(family) == []


def test_goals_are_all_cells_but_the_start_and_divided_between_the_splits():
    family = PointMazeGoal()
    train, test = family.all_tasks("train"), family.all_tasks("test")
    layout = train[0].layout
    starts = {task.start for task in train + test}
    assert len(starts) == 1
    goals = [task.goal for task in train + test]
    assert sorted([*goals, *starts]) == sorted(map(tuple, layout.free_cells.tolist()))
    assert len(test) == len(goals) // 3
    drawn = family.sample(500, np.random.default_rng(0), split="test")
    assert set(drawn) == set(test)
    assert set(family.sample(500, np.random.default_rng(0))) == set(train)


def test_layouts_starts_and_goals_vary_and_the_splits_are_disjoint():
    family = PointMazeLayout()
    train, test = (family.sample(200, np.random.default_rng(0), split=split) for split in ("train", "test"))
    assert not {task.layout for task in train} & {task.layout for task in test}
    assert all(not task.layout.walls[cell] for task in train + test for cell in (task.start, task.goal))
    assert all(task.start != task.goal for task in train + test)
    for name in ("layout", "start", "goal"):
        assert len({getattr(task, name) for task in train}) > 10
    assert train == family.sample(200, np.random.default_rng(0))


def test_the_scene_is_the_maze_from_above():
    family = PointMazeLayout(num_rows=5, num_columns=5)
    scene = family.scene(MazeTask(CORRIDOR, (2, 1), (2, 3)))
    assert scene.walls[:2] == ((-2.5, 1.5, 5.0, 1.0), (-2.5, 0.5, 5.0, 1.0))
    assert scene.walls[2:4] == ((-2.5, -0.5, 1.0, 1.0), (1.5, -0.5, 1.0, 1.0))
    assert (scene.start, scene.goal, scene.goal_radius) == ((-1.0, 0.0), (1.0, 0.0), 0.4)
    observations = np.arange(24.0, dtype=np.float32).reshape(2, 1, 12)
    assert family.positions(observations).tolist() == [[[0.0, 1.0]], [[12.0, 13.0]]]


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (PointMazeGoal, {"horizon": 0}, r"task\.horizon = 0: must be an integer >= 1"),
        (PointMazeGoal, {"layout": "large"}, r"task\.layout"),
        (PointMazeGoal, {"reward": "dence"}, r"task\.reward.*dense"),
        (PointMazeLayout, {"num_rows": 6}, r"task\.num_rows = 6: must be an odd integer >= 5"),
        (PointMazeLayout, {"num_columns": 3}, r"task\.num_columns = 3"),
        (PointMazeLayout, {"num_rays": -1}, r"task\.num_rays = -1"),
    ],
)
def test_bad_settings_are_named(family, settings, message):
    with pytest.raises(InputError, match=message):
        family(**settings)
