"""A point mass in a maze, where it must find a goal that it does not observe. The layout is fixed, or new in each task.

Tasks and rewards are those of `metarl.envs.maze_robots`, which lists how they differ from PointMaze of
Gymnasium-Robotics. The physics differs too. PointMaze has a force of up to 100 N on 4 kg, chosen 100 times
a second, and clips the speed at 5 m/s. Here a force of up to 10 N on 1 kg is chosen 10 times a second, and drag limits
the speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast, Odd
from metarl.core.tasks import Split
from metarl.envs.maze_robots import (
    FIXED_LAYOUTS,
    FixedLayout,
    FixedMazeTasks,
    MazeEnv,
    MazeTasks,
    Reward,
    numbered,
    wall_boxes,
)
from metarl.envs.mazes import MazeTask, generate
from metarl.envs.random_numbers import RandomNumbers
from metarl.envs.simulator import mujoco
from metarl.envs.vector import ALL, Bools, Floats

RADIUS = 0.15
WALL_HEIGHT = 0.5
FRAME_SKIP = 5

# A force of 10 N against a drag of 4 N s/m moves 1 kg at up to 2.5 m/s along each axis, within half a second. 100 steps
# are enough to cross any maze. The physics step is 0.02 s. Measured in 400 mazes, with random full force for 10 s, by
# physics step:
#   depth by which points enter walls, at most:                      0.02 s: 5 cm;   0.01 s: 2.4 cm;  0.001 s: 1.8 cm
#   final distance from the run with steps of 0.001 s, median:       0.02 s: 2.6 cm; 0.01 s: 1.1 cm
# This accuracy is enough; a step of 0.01 s would cost twice as much.
# The midphase is off: it uses a tree of boxes made when the model is compiled, so it would miss moved walls.
_MODEL = """
<mujoco model="point maze">
  <option timestep="0.02" jacobian="dense"><flag midphase="disable"/></option>
  <default><geom condim="1"/></default>
  <worldbody>
    {walls}
    <geom name="floor" type="plane" size="{extent} {extent} 1" contype="0" conaffinity="0" rgba="0.9 0.9 0.9 1"/>
    <site name="goal" type="cylinder" pos="0 0 -9" size="{goal_radius} 0.01" rgba="0.2 0.7 0.3 1"/>
    <light pos="0 0 {camera}" dir="0 0 -1" directional="true" diffuse="0.4 0.4 0.4"/>
    <camera name="above" pos="0 0 {camera}"/>
    <body name="point" pos="0 0 {radius}">
      <joint name="x" type="slide" axis="1 0 0" damping="4"/>
      <joint name="y" type="slide" axis="0 1 0" damping="4"/>
      <geom name="point" type="sphere" size="{radius}" mass="1" rgba="0.2 0.4 0.8 1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="10" ctrllimited="true" ctrlrange="-1 1"/>
    <motor joint="y" gear="10" ctrllimited="true" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""
_UNUSED_WALL = '<geom type="box" pos="0 0 -9" size="0.5 0.5 0.25" contype="0" rgba="0.3 0.3 0.35 1"/>'


class PointMazeEnv(MazeEnv):
    """A point mass, pushed with forces of up to 10 N along x and y for 0.1 s per step.

    Observations are x, y, their velocities, and the distances to the walls along rays. Distances are measured from the
    point's centre. Ray k points k / num_rays of a turn anticlockwise from the x axis. Tasks must be set before `reset`.
    """

    cell_size = 1.0
    goal_radius = 0.4

    def __init__(
        self,
        num_envs: int,
        *,
        shape: tuple[int, int],
        num_rays: int = 0,
        horizon: int = 100,
        **settings: Any,
    ) -> None:
        """
        Args:
            num_envs: number of simulations.
            shape: rows and columns of every task's layout.
            num_rays: how many distances to walls are observed.
            horizon: steps of 0.1 s after which a trajectory is truncated.
            **settings: of `MazeEnv`.
        """
        self._num_walls = 2 + (shape[0] - 2) * math.ceil(shape[1] / 2)  # the largest number of runs of walls
        super().__init__(
            mujoco.MjModel.from_xml_string(
                _MODEL.format(
                    walls=_UNUSED_WALL * self._num_walls,
                    radius=RADIUS,
                    goal_radius=self.goal_radius,
                    extent=max(shape) / 2 * self.cell_size,
                    camera=1.4 * max(shape) * self.cell_size,
                )
            ),
            num_envs,
            shape=shape,
            frame_skip=FRAME_SKIP,
            horizon=horizon,
            observation_size=4 + num_rays,
            **settings,
        )
        self._walls = np.ones((num_envs, *shape), bool)
        angles = 2.0 * np.pi * np.arange(num_rays) / max(num_rays, 1)
        self._rays = np.stack((-np.sin(angles), np.cos(angles)), 1)

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[MazeTask]) -> None:
        super()._assign_tasks(ids, tasks)
        model, count = self.simulator.model, self._num_walls
        layouts, which = numbered([task.layout for task in tasks])
        self._walls[ids] = np.stack([layout.walls for layout in layouts])[which]
        pos, size, rbound = (
            np.repeat(field[np.newaxis], len(layouts), 0)
            for field in (model.geom_pos, model.geom_size, model.geom_rbound)
        )
        for number, layout in enumerate(layouts):
            boxes = wall_boxes(layout, self.cell_size, WALL_HEIGHT)
            pos[number, : len(boxes)], size[number, : len(boxes)] = boxes[:, 0], boxes[:, 1]
        rbound[:, :count] = np.linalg.norm(size[:, :count], axis=-1)  # MuJoCo derives it only when it compiles a model
        for name, values in (("geom_pos", pos), ("geom_size", size), ("geom_rbound", rbound)):
            self.simulator.set_model_field(name, ids, values[which])

    def _initial_states(self, rngs: RandomNumbers) -> tuple[Floats, Floats]:
        # Drawn for all at once: making 800 generators would take as long as two steps of 800 points.
        return self.reset_noise * (2.0 * rngs.uniforms(2) - 1.0), self.reset_noise * rngs.normals(2)

    def _observe(self) -> NDArray[Any]:
        state = super()._observe()
        if not len(self._rays):
            return state
        lengths = ray_lengths(self._walls, self._places(ALL), self._rays)
        return np.concatenate((state, self.cell_size * lengths), 1)


@dataclass(frozen=True)
class PointMazeGoal(FixedMazeTasks):
    """A point must find a goal in a maze that is the same for all tasks.

    It starts in the first free cell. The goals are the other free cells. Every third of them, counted
    row by row, is for test only.

    Attributes:
        horizon: steps per trajectory, of 0.1 s each.
        layout: "u" (a U of 7 cells) or "medium" (8 by 8 with its border).
        reward: "dense": minus the length of the route to the goal, in metres; "sparse": 1 within 0.4 m of it, else 0.
    """

    horizon: Annotated[int, AtLeast(1)] = 100
    layout: FixedLayout = "medium"
    reward: Reward = "dense"

    env = PointMazeEnv

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> PointMazeEnv:
        shape = FIXED_LAYOUTS[self.layout].walls.shape
        return PointMazeEnv(num_envs, shape=shape, reward=self.reward, horizon=self.horizon, num_threads=num_threads)


@dataclass(frozen=True)
class PointMazeLayout(MazeTasks):
    """A point must find a goal in a new maze. It observes the distances to the walls along rays.

    Layouts are generated (`metarl.envs.mazes.generate`). Those of the test split never occur in training. Start and
    goal are two free cells, drawn uniformly.

    Attributes:
        horizon: steps per trajectory, of 0.1 s each.
        num_rows: rows of the maze with its border.
        num_columns: columns of the maze with its border.
        num_rays: directions in which the distance to the next wall is observed.
        reward: as in `PointMazeGoal`.
    """

    horizon: Annotated[int, AtLeast(1)] = 100
    num_rows: Annotated[int, AtLeast(5), Odd] = 7
    num_columns: Annotated[int, AtLeast(5), Odd] = 7
    num_rays: Annotated[int, AtLeast(0)] = 8
    reward: Reward = "dense"

    env = PointMazeEnv

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[MazeTask]:
        tasks = []
        for _ in range(num_tasks):
            layout = generate(rng, self.num_rows, self.num_columns, split=split)
            (row, column), goal = rng.choice(layout.free_cells, 2, replace=False).tolist()
            tasks.append(MazeTask(layout, (row, column), (goal[0], goal[1])))
        return tasks

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> PointMazeEnv:
        return PointMazeEnv(
            num_envs,
            shape=(self.num_rows, self.num_columns),
            reward=self.reward,
            num_rays=self.num_rays,
            horizon=self.horizon,
            num_threads=num_threads,
        )


def ray_lengths(walls: Bools, places: Floats, rays: Floats) -> Floats:
    """The distances from places to the first wall along rays.

    Args:
        walls: [n, num_rows, num_columns], with a border of walls.
        places: where rays start, [n, 2]; cell (r, c) extends from (r, c) to (r + 1, c + 1).
        rays: directions of length 1 in the same coordinates, [num_rays, 2].

    Returns:
        Distances in cells, [n, num_rays].
    """
    num_places, num_rows, num_columns = walls.shape
    rays = np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    forward, apart = rays > 0.0, 1.0 / np.abs(rays)
    first = np.minimum(np.maximum(np.floor(places.T), 0.0), [[num_rows - 1.0], [num_columns - 1.0]])
    lines = first[:, np.newaxis] + forward.T[:, :, np.newaxis]
    to_row, to_column = ((lines - places.T[:, np.newaxis]) / rays.T[:, :, np.newaxis]).reshape(2, -1)
    # What crossing a line adds: entry 2 * ray for a line between columns, entry 2 * ray + 1 for one between rows.
    moves = (np.where(forward, 1, -1) * (num_columns, 1))[:, ::-1].ravel()
    next_row, next_column = (np.where(own, apart, 0.0)[:, ::-1].ravel() for own in ([True, False], [False, True]))
    cell = (first[0] * num_columns + first[1]).astype(np.intp) + np.arange(num_places) * (num_rows * num_columns)
    cell, ray = np.tile(cell, len(rays)), np.repeat(2 * np.arange(len(rays)), num_places)
    going, lengths = np.arange(len(cell)), np.empty(len(cell))
    while going.size:
        crossing = ray + (to_row < to_column)
        lengths[going] = np.minimum(to_row, to_column)
        cell += moves.take(crossing)
        # A step out of the border leads to another border cell, of this maze or the next: a wall, so the ray ends.
        free = np.flatnonzero(~walls.take(cell, mode="clip"))
        going, ray, cell, crossing = (array.take(free) for array in (going, ray, cell, crossing))
        to_row = to_row.take(free) + next_row.take(crossing)
        to_column = to_column.take(free) + next_column.take(crossing)
    return lengths.reshape(len(rays), num_places).T
