"""Meta-train an agent to find out random MDPs within ten short episodes (Duan et al. 2016, arXiv:1611.02779).

Ten states, five actions, ten steps an episode; next-state chances and mean rewards are drawn anew for every task. Over
ten episodes, acting at random collects about 100, planning with the posterior's means 149, a planner with a tuned bonus
for what it has tried little 153, and a player who knew the MDP would collect 219.

    python scripts/train_tabular_mdp.py --agent rl2      the default preset, about an hour on one core

`scripts/compare_tabular_mdps.py RUN_DIR` puts the trained agent beside the planners.
Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "tabular-mdp", *sys.argv[1:]]))
