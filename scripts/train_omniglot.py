"""Meta-train a learner on Omniglot (Lake et al. 2015), the handwritten characters of 50 alphabets.

Bring the files: `--task.root FOLDER` (or METARL_DATA) with the two official zip files, the folders they unpack to, or a
packed omniglot28.npz. Published accuracies on five characters, one example each, are 0.97 to 0.99.

    python scripts/train_omniglot.py --agent proto --task.root data      60-way training, 104 minutes on one core
    python scripts/train_omniglot.py --agent maml --task.root data       the paper's 60,000 iterations; hours, not timed

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "omniglot", *sys.argv[1:]]))
