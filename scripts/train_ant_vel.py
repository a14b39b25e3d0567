"""Meta-train an agent to adapt an ant to a goal velocity (Finn et al. 2017, arXiv:1703.03400).

The goal velocity is drawn from U(0, 3) m/s. The reward is 1 - |forward velocity - goal| - 0.005 |control|^2 + 0.05, and
a trajectory ends when the ant falls or leaps. With `--task.high 2 --task.test-low 2 --task.test-high 3`, the test goals
are faster than any training goal. The settings are those of the half-cheetah, not tuned for ants.

    python scripts/train_ant_vel.py --preset quick      about 8 minutes on two cores
    python scripts/train_ant_vel.py                     the default preset, one to three hours (estimated)

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "ant-vel", *sys.argv[1:]]))
