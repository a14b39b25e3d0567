"""Meta-train an agent to find a hidden goal in a maze it has never seen, and to find it faster from then on.

Mazes of 9 by 9 cells are generated, those for test never occur in training; start, goal and walls stay the same within
a task. The goal pays 1 and ends a trajectory of 50 steps at most, any other step costs 0.01. The shortest ways have
eight steps on average (a return of 0.93); moving at random reaches the goal in a quarter of the trajectories.

    python scripts/train_grid_maze.py --agent rl2         four trajectories a trial
    python scripts/train_grid_maze.py --preset quick      MAML, nine iterations
    python scripts/train_grid_maze.py                     MAML, the default preset
    python scripts/train_grid_maze.py --task.reward dense paid step by step for coming nearer

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "grid-maze", *sys.argv[1:]]))
