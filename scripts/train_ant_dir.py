"""Meta-train an agent to adapt an ant to walking forward or backward (Finn et al. 2017, arXiv:1703.03400).

The reward is the velocity along the direction - 0.005 |control|^2 + 0.05. A trajectory ends when the ant falls or
leaps. `--task.directions any` draws the direction from the whole circle; with `--task.high 3.14 --task.test-low 3.14
--task.test-high 6.28`, the test directions lie in the half that training never sees. `--task.contact-forces` adds
Ant-v5's contact forces to the observation, and their cost to the reward. The settings are those of the half-cheetah,
not tuned for ants.

    python scripts/train_ant_dir.py --preset quick      about 8 minutes on two cores
    python scripts/train_ant_dir.py                     the default preset, one to three hours (estimated)

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "ant-dir", *sys.argv[1:]]))
