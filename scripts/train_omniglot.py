"""Meta-train a learner on Omniglot (Lake et al. 2015), the handwritten characters of 50 alphabets.

The data is not included. `--task.root FOLDER` (or METARL_DATA) holds the two official zip files, their unpacked
folders, or a packed omniglot28.npz. Published accuracies on five characters with one example each are 0.97 to 0.99.

    python scripts/train_omniglot.py --agent proto --task.root data      60-way training, 104 minutes on one core
    python scripts/train_omniglot.py --agent maml --task.root data       the paper's 60,000 iterations; hours, not timed

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "omniglot", *sys.argv[1:]]))
