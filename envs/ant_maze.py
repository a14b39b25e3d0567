"""Gymnasium's ant in a maze, where it must find a goal that it does not observe.

Tasks and rewards are those of `metarl.envs.maze_robots`, which lists how they differ from Gymnasium-Robotics' AntMaze.
The goal's radius differs too: 1 m instead of 0.45 m, because an ant is about 1 m wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast, Positive
from metarl.envs.locomotion import ASSETS
from metarl.envs.maze_robots import FIXED_LAYOUTS, FixedLayout, FixedMazeTasks, MazeEnv, Reward, wall_boxes
from metarl.envs.mazes import Layout, MazeTask
from metarl.envs.simulator import mujoco

WALL_HEIGHT = 2.0  # metres, as in AntMaze; with random full-strength controls, an ant gets onto walls of 1 m
FRAME_SKIP = 5


class AntMazeEnv(MazeEnv):
    """Gymnasium's ant among walls.

    Observations are 29 numbers: x, y and the 27 of Ant-v4 (all positions, then all velocities). As in AntMaze, the MDP
    does not terminate when the ant falls.
    """

    cell_size = 4.0
    goal_radius = 1.0

    def __init__(
        self,
        num_envs: int,
        *,
        layout: Layout,
        horizon: int = 300,
        action_limit: float = 1.0,
        **settings: Any,
    ) -> None:
        """
        Args:
            num_envs: number of simulations.
            layout: the layout of every task.
            horizon: steps of 0.05 s after which a trajectory is truncated.
            action_limit: actions in [-action_limit, action_limit] are scaled to the controls [-1, 1] and clipped.
            **settings: of `MazeEnv`.
        """
        super().__init__(
            _model(layout, self.cell_size, self.goal_radius),
            num_envs,
            shape=layout.walls.shape,
            frame_skip=FRAME_SKIP,
            horizon=horizon,
            action_limit=action_limit,
            **settings,
        )
        self._layout = layout

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[MazeTask]) -> None:
        wrong = next((task for task in tasks if task.layout != self._layout), None)
        if wrong is not None:
            raise ValueError(f"{wrong}: the layout of these environments is {self._layout}")
        super()._assign_tasks(ids, tasks)


@dataclass(frozen=True)
class AntMazeGoal(FixedMazeTasks):
    """An ant must find a goal in a maze that is the same for all tasks.

    It starts in the first free cell. The goals are the other free cells. Every third of them, counted
    row by row, is for test only.

    Attributes:
        horizon: steps per trajectory, of 0.05 s each.
        layout: "u" (a U of 7 cells) or "medium" (8 by 8 with its border), with cells of 4 m.
        reward: "dense": minus the length of the route to the goal, in metres; "sparse": 1 within 1 m of it, else 0.
        action_limit: the policy's action range: actions in [-action_limit, action_limit] are scaled to the
            controls [-1, 1] and clipped.
    """

    horizon: Annotated[int, AtLeast(1)] = 300
    layout: FixedLayout = "u"
    reward: Reward = "dense"
    action_limit: Annotated[float, Positive] = 1.0

    env = AntMazeEnv

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
