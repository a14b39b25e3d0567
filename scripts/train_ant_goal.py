"""Meta-train an agent to adapt an ant to walking to a hidden goal (Rakelly et al. 2019, arXiv:1903.08254).

The goal is uniform in the disc of radius 3 m around the start. The reward is -|x - goal x| - |y - goal y| - 0.1
|control|^2, and nothing ends a trajectory early. With `--task.high 2 --task.test-low 2 --task.test-high 3`, the test
goals are farther away than any training goal. The settings are those of the half-cheetah, not tuned for ants.

    python scripts/train_ant_goal.py --preset quick      about 8 minutes on two cores
    python scripts/train_ant_goal.py                     the default preset, 200 iterations of about 50 s

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "ant-goal", *sys.argv[1:]]))
