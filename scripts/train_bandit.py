"""Meta-train an agent to adapt to Bernoulli bandits: the smallest meta-RL problem, with discrete actions.

Each task is five arms with chances of reward drawn from U(0, 1). Expect a return near 0.5 before adaptation (that of
any fixed arm) and more with every gradient step on twenty pulls; the best arm pays 5/6 on average.

    python scripts/train_bandit.py --preset quick      seconds
    python scripts/train_bandit.py                     the default preset, less than a minute

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "bandit", *sys.argv[1:]]))
