"""Meta-train an agent to walk an ant to a hidden goal in a maze.

Gymnasium's ant starts at one end of a U of 7 cells of 4 m. The task is the goal's cell; training never uses a test
goal. The reward is minus the length of the path to the goal (`--task.reward sparse`: 1 at the goal, else 0), and
nothing ends a trajectory early. `--task.layout medium` has 8 by 8 cells. The settings are those of the half-cheetah,
not tuned for ants.

    python scripts/train_ant_maze_goal.py --preset quick      about 8 minutes on two cores
    python scripts/train_ant_maze_goal.py                     the default preset, hours (estimated)

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "ant-maze-goal", *sys.argv[1:]]))
