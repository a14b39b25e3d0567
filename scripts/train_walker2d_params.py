"""Meta-train an agent to adapt a walker of unknown build (Rothfuss et al. 2018, arXiv:1810.06784).

Masses, moments of inertia and frictions are multiplied by 1.5^u, and dampings by 1.3^u; each has its own u from
U(-3, 3). The reward is dx/dt + 1 - 0.001 |control|^2, and a fall or a leap ends the trajectory. With
`--task.log-scale-limit 2 --task.test-log-scale-limit 3`, every factor of a test task is more extreme than any in
training. The settings are those of the half-cheetah, not tuned for walkers.

    python scripts/train_walker2d_params.py --preset quick      at most 8 minutes on two cores, then the test
    python scripts/train_walker2d_params.py                     the default preset, up to an hour

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "walker2d-params", *sys.argv[1:]]))
