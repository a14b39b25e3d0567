"""Meta-train a learner on miniImageNet, photographs of 100 classes (Vinyals et al. 2016, split by Ravi et al. 2017).

The data is not included. `--task.root FOLDER` holds train.csv, val.csv, test.csv and images/, or a folder for each
class below train, val and test. Published accuracies on five classes are up to 0.50 with one example and 0.68 with
five.

    python scripts/train_mini_imagenet.py --task.root data                    the paper's settings, days without a GPU
    python scripts/train_mini_imagenet.py --agent proto --task.root data      30-way training

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "mini-imagenet", *sys.argv[1:]]))
