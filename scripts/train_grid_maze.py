"""Meta-train an agent to find a hidden goal in a new maze, and to find it faster from then on.

The mazes are generated, with 9 by 9 cells; training never uses a test maze. Start, goal and walls stay the same within
a task. Reaching the goal pays 1 and ends the trajectory, which has at most 50 steps; any other step costs 0.01. The
shortest paths have eight steps on average (a return of 0.93). Random moves reach the goal in a quarter of the
trajectories.

    python scripts/train_grid_maze.py --agent rl2         four trajectories a trial
    python scripts/train_grid_maze.py --preset quick      MAML, nine iterations
    python scripts/train_grid_maze.py                     MAML, the default preset
    python scripts/train_grid_maze.py --task.reward dense   a reward for every step towards the goal

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "grid-maze", *sys.argv[1:]]))
