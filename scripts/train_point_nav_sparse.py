"""Meta-train an agent to search a half circle for a goal that pays only nearby (Zintgraf et al., arXiv:1910.08348).

The goal lies on the upper half of the unit circle. A step within 0.2 of it pays 1 minus the distance, any other step
pays nothing. In the 100 steps of a trajectory, never moving scores 0 and going straight to the goal about 93.

    python scripts/train_point_nav_sparse.py --agent rl2         two trajectories a trial
    python scripts/train_point_nav_sparse.py --preset quick      MAML, nine iterations
    python scripts/train_point_nav_sparse.py                     MAML, the default preset
    python scripts/train_point_nav_sparse.py --task.reward dense   minus the distance at every step

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "point-nav-sparse", *sys.argv[1:]]))
