"""Meta-train an agent to adapt a humanoid to running in any direction (Rakelly et al. 2019, arXiv:1903.08254).

The reward is 1.25 times the velocity along the direction - 0.1 |control|^2 + 5, and a fall ends the trajectory. So an
agent first learns to stand. With `--task.high 3.14 --task.test-low 3.14 --task.test-high 6.28`, the test directions lie
in the half circle that training never sees. The settings are those of the half-cheetah with a wider network, not tuned
for humanoids.

    python scripts/train_humanoid_dir.py --preset quick      about 8 minutes on two cores
    python scripts/train_humanoid_dir.py                     the default preset, one to two hours

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "humanoid-dir", *sys.argv[1:]]))
