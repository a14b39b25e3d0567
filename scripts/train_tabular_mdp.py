"""Meta-train an agent to explore random MDPs within ten short episodes (Duan et al. 2016, arXiv:1611.02779).

Ten states, five actions, ten steps an episode. Each task draws its own transition probabilities and mean rewards. Over
ten episodes, random actions collect about 100, a planner with the posterior's means 149, and a planner with a tuned
bonus for rarely tried actions 153. The optimum of the known MDP is 219.

    python scripts/train_tabular_mdp.py --agent rl2      the default preset, about an hour on one core

`scripts/compare_tabular_mdps.py RUN_DIR` compares the trained agent with the planners.
Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "tabular-mdp", *sys.argv[1:]]))
