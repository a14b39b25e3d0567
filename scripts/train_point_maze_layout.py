"""Meta-train an agent to find a hidden goal in a maze that it has never seen.

The task is a generated maze of 7 by 7 cells of 1 m with a start and a goal; training never uses a test maze. A point
mass senses the walls along 8 rays. The reward is minus the length of the path to the goal (`--task.reward sparse`: 1 at
the goal, else 0), and reaching the goal does not end the trajectory. `--task.num-rows 9 --task.num-columns 9` makes
larger mazes. The settings are not tuned.

    python scripts/train_point_maze_layout.py --preset quick      about 8 minutes on two cores
    python scripts/train_point_maze_layout.py                     the default preset, half an hour to an hour

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "point-maze-layout", *sys.argv[1:]]))
