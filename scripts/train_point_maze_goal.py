"""Meta-train an agent to find a goal that it cannot see in a maze that stays the same.

A point mass is pushed about a maze of 8 by 8 cells of 1 m, from one start; the task is the goal's cell, and test goals
are never trained on. The reward is minus the length of the way to the goal (`--task.reward sparse`: 1 at the goal, else
0), and arriving ends nothing. `--task.layout u` is smaller. The settings are not tuned.

    python scripts/train_point_maze_goal.py --preset quick      about 8 minutes on two cores
    python scripts/train_point_maze_goal.py                     the default preset, half an hour to an hour

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "point-maze-goal", *sys.argv[1:]]))
