"""Meta-train an agent to find a hidden goal in a maze that stays the same.

The agent pushes a point mass through a maze of 8 by 8 cells of 1 m, always from the same start. The task is the goal's
cell; training never uses a test goal. The reward is minus the length of the path to the goal (`--task.reward sparse`:
1 at the goal, else 0), and reaching the goal does not end the trajectory. `--task.layout u` is smaller. The settings
are not tuned.

    python scripts/train_point_maze_goal.py --preset quick      about 8 minutes on two cores
    python scripts/train_point_maze_goal.py                     the default preset, half an hour to an hour

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "point-maze-goal", *sys.argv[1:]]))
