"""Meta-train an agent to adapt a half-cheetah to running forward or backward (Finn et al. 2017, arXiv:1703.03400).

There are two tasks, dir = +1 and -1, with the reward dir * forward velocity - 0.05 |control|^2. No single policy solves
both, so the gain of a gradient step comes from the task's own data. Expect a return near 0 before adaptation in both
directions. The return after adaptation grows in training.

    python scripts/train_half_cheetah_dir.py --preset quick      about 8 minutes on two cores
    python scripts/train_half_cheetah_dir.py                     the default preset, half an hour to an hour
    python scripts/train_half_cheetah_dir.py --preset paper      the paper's settings on Gymnasium's physics, hours

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "half-cheetah-dir", *sys.argv[1:]]))
