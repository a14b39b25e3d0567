"""Meta-train an agent to adapt a half-cheetah to a goal velocity (Finn et al. 2017, arXiv:1703.03400).

The goal velocity is drawn from U(0, 2) m/s; the reward is -|velocity - goal| - 0.05 |control|^2. Expect the return to
rise with every gradient step, most with the first. With `--task.test-low 2 --task.test-high 3`, the test goals are
faster than any training goal.

    python scripts/train_half_cheetah_vel.py --preset quick      about 8 minutes on two cores
    python scripts/train_half_cheetah_vel.py                     the default preset, half an hour to an hour
    python scripts/train_half_cheetah_vel.py --preset paper      the paper's settings on Gymnasium's physics, hours

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "half-cheetah-vel", *sys.argv[1:]]))
