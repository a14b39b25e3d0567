"""Meta-train an agent to search a half circle for a goal that pays only when it is near (Zintgraf et al.,
arXiv:1910.08348).

The goal lies on the upper half of the unit circle; within 0.2 of it a step pays 1 minus the distance, elsewhere
nothing. Never moving scores 0, going straight to the goal about 93 in the 100 steps of a trajectory.

    python scripts/train_point_nav_sparse.py --agent rl2         two trajectories a trial
    python scripts/train_point_nav_sparse.py --preset quick      MAML, nine iterations
    python scripts/train_point_nav_sparse.py                     MAML, the default preset
    python scripts/train_point_nav_sparse.py --task.reward dense paid for the distance at every step

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "point-nav-sparse", *sys.argv[1:]]))
