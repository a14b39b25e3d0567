"""Meta-train an agent to adapt an ant to walking to a place that it cannot see (Rakelly et al. 2019, arXiv:1903.08254).

The goal is drawn uniformly from the disc of radius 3 m round the start; the reward is -|x - goal x| - |y - goal y| -
0.1 |control|^2, and nothing ends a trajectory early. `--task.high 2 --task.test-low 2 --task.test-high 3` tests on
goals farther away than any trained. The settings are the half-cheetah's, not tuned for ants.

    python scripts/train_ant_goal.py --preset quick      about 8 minutes on two cores
    python scripts/train_ant_goal.py                     the default preset, 200 iterations of about 50 s

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "ant-goal", *sys.argv[1:]]))
