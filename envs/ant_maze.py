"""Gymnasium's ant in a maze that must find a goal it cannot see.

The tasks and rewards are those of `metarl.envs.maze_robots`. Differs from Gymnasium-Robotics' AntMaze in what these do,
and in the goal's radius of 1 m, not 0.45 m: an ant is about that wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.envs.locomotion import ASSETS
from metarl.envs.maze_robots import FIXED_LAYOUTS, FixedLayout, FixedMazeTasks, MazeEnv, Reward, wall_boxes
from metarl.envs.mazes import Layout, MazeTask
from metarl.errors import require

WALL_HEIGHT = 2.0  # as in AntMaze; random controls at full strength get an ant onto walls of 1 m
FRAME_SKIP = 5


class AntMazeEnv(MazeEnv):
    """Gymnasium's ant among walls.

    Observations are 29 numbers: x, y and the 27 of Ant-v4 (all positions, then all velocities). As in AntMaze, falling
    over ends nothing.
    """

    cell_size = 4.0
    goal_radius = 1.0

    def __init__(
        self,
        num_envs: int,
        *,
        layout: Layout,
        reward: Reward = "dense",
        horizon: int = 300,
        action_limit: float = 1.0,
        num_threads: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
    ) -> None:
        """
        Args:
            num_envs: number of simulations.
            layout: of every task.
            reward: "dense" or "sparse", as in `MazeEnv`.
            horizon: steps of 0.05 s after which a trajectory is truncated.
            action_limit: actions in [-action_limit, action_limit] are scaled onto the controls [-1, 1] and clipped.
            num_threads: threads of the simulator, 0 for all cores; does not change the results.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        super().__init__(
            _model(layout, self.cell_size, self.goal_radius),
            num_envs,
            shape=layout.walls.shape,
            reward=reward,
            frame_skip=FRAME_SKIP,
            horizon=horizon,
            action_limit=action_limit,
            num_threads=num_threads,
            autoreset_mode=autoreset_mode,
        )
        self._layout = layout

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[MazeTask]) -> None:
        wrong = next((task for task in tasks if task.layout != self._layout), None)
        if wrong is not None:
            raise ValueError(f"{wrong}: the walls of these environments are those of {self._layout}")
        super()._assign_tasks(ids, tasks)


@dataclass(frozen=True)
class AntMazeGoal(FixedMazeTasks):
    """A goal to be found by an ant in a maze that stays the same.

    Starts in the first free cell. The goals are the other free cells; every third, row by row, is for test alone.

    Attributes:
        horizon: steps per trajectory, of 0.05 s each, >= 1.
        layout: "u" (a U of 7 cells) or "medium" (8 by 8 with its border), with cells of 4 m.
        reward: "dense": minus the length of the way to the goal, in metres; "sparse": 1 within 1 m of it, else 0.
        action_limit: the policy's action range, > 0: actions in [-action_limit, action_limit] are scaled onto the
            controls [-1, 1] and clipped.
    """

    horizon: int = 300
    layout: FixedLayout = "u"
    reward: Reward = "dense"
    action_limit: float = 1.0

    env = AntMazeEnv

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.action_limit < math.inf, "task.action_limit", self.action_limit, "finite and above 0")

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> AntMazeEnv:
        return AntMazeEnv(
            num_envs,
            layout=FIXED_LAYOUTS[self.layout],
            reward=self.reward,
            horizon=self.horizon,
            action_limit=self.action_limit,
            num_threads=num_threads,
        )


def _model(layout: Layout, size: float, goal_radius: float) -> Any:
    spec = mujoco.MjSpec.from_file(str(ASSETS / "ant.xml"))
    for centre, half_sizes in wall_boxes(layout, size, WALL_HEIGHT):
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=centre,
            size=half_sizes,
            contype=0,
            conaffinity=1,
            rgba=[0.3, 0.3, 0.35, 1.0],
        )
    spec.worldbody.add_site(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        pos=[0.0, 0.0, -9.0],
        size=[goal_radius, 0.01, 0.0],
        rgba=[0.2, 0.7, 0.3, 1.0],
    )
    spec.worldbody.add_camera(name="above", pos=[0.0, 0.0, 1.3 * size * max(layout.walls.shape)])
    return spec.compile()
