"""Pictures of test tasks from above: mazes and goals.

    python scripts/draw_tasks.py --picture FILE.png

Every panel has its own scale: a cell is 1 m wide for points, 4 m for ants, and one step on grids. The disc around a
goal is the area in which it counts as reached.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from metarl.envs.ant_maze import AntMazeGoal
from metarl.envs.grid_maze import GridMaze
from metarl.envs.point_maze import PointMazeGoal, PointMazeLayout
from metarl.envs.point_nav import PointNavSparse
from metarl.report.plots import save_figure, scenes_figure
from metarl.rl.routes import scene_to_json
from metarl.rl.tasks import EnvTaskDistribution

SEED = 0
NUM_COLUMNS = 5


def families() -> list[tuple[str, EnvTaskDistribution[Any], int]]:
    """Title, family and number of panels of each family with walls or a hidden goal."""
    return [
        ("point-maze-goal (medium)", PointMazeGoal(), 1),
        ("point-maze-layout", PointMazeLayout(), 3),
        ("the same, 11 by 11 cells", PointMazeLayout(num_rows=11, num_columns=11), 1),
        ("ant-maze-goal (u)", AntMazeGoal(), 1),
        ("ant-maze-goal (medium)", AntMazeGoal(layout="medium"), 1),
        ("grid-maze", GridMaze(), 2),
        ("point-nav-sparse", PointNavSparse(), 1),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--picture", type=Path, required=True, help="a png, pdf or svg file")
    path = parser.parse_args().picture
    scenes = []
    for number, (title, family, count) in enumerate(families()):
        for task in family.sample(count, np.random.default_rng((SEED, number)), split="test"):
            scene = family.scene(task)
            assert scene is not None
            scenes.append((title, scene_to_json(scene)))
    save_figure(scenes_figure(scenes, num_columns=NUM_COLUMNS), path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
