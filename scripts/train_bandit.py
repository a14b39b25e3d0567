"""Meta-train an agent to adapt to Bernoulli bandits: the smallest meta-RL problem, with discrete actions.

Each task is five arms whose reward probabilities are drawn from U(0, 1). Before adaptation, expect a return near 0.5
per pull, which is that of any fixed arm. Every gradient step on twenty pulls raises it. The best arm pays 5/6 on
average.

    python scripts/train_bandit.py --preset quick      seconds
    python scripts/train_bandit.py                     the default preset, less than a minute

An agent with a memory learns from pull to pull. In 10 pulls the most that it can collect is 6.66 with 5 arms and 6.71
with 10. In 100 pulls the finite-horizon Gittins index collects 78.6 and 83.8 (`scripts/compare_bandits.py`).

    python scripts/train_bandit.py --agent rl2                      ten pulls one by one: seconds
    python scripts/train_bandit.py --agent rl2 --preset 10x5        5 arms, a trial of 10 pulls: minutes
    python scripts/train_bandit.py --agent rl2 --preset 10x10       10 arms
    python scripts/train_bandit.py --agent rl2 --preset 100x5       5 arms, 100 pulls: under an hour
    python scripts/train_bandit.py --agent rl2 --preset 100x10      10 arms, 100 pulls: under an hour

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "bandit", *sys.argv[1:]]))
