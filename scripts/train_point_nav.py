"""Meta-train an agent to move a point in the plane to a hidden goal (Finn et al. 2017, arXiv:1703.03400, figure 4).

The goal is drawn from [-0.5, 0.5]^2; the reward is minus the distance to it. Expect a return near -40 before adaptation
(never moving scores -40.1) and near -12 after one gradient step. The optimum is -0.54. The
preset `paper` also tests as the paper does, on 40 goals with 4,000 steps per update.

    python scripts/train_point_nav.py --preset quick      within a minute on two cores
    python scripts/train_point_nav.py                     the default preset, some minutes
    python scripts/train_point_nav.py --preset paper      the paper's settings and test

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "point-nav", *sys.argv[1:]]))
