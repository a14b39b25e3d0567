"""Meta-train an agent to find a goal cell on a small grid and to go back to it (Zintgraf et al., arXiv:1910.08348).

The goal is one of 21 cells of a 5 by 5 grid. It pays 1 a step, and every other cell costs 0.1. An episode has 15 steps,
a trial four episodes. A Bayes-optimal player collects 4.0 in its first episode, when it searches, and 11.07 in each
later one.

    python scripts/train_grid_nav.py --agent rl2      the default preset, three minutes on one core
    python scripts/train_grid_nav.py --agent maml     the default preset

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "grid-nav", *sys.argv[1:]]))
