"""Meta-train a learner on your own images: one folder for each class, optionally below train, val and test.

    python scripts/train_image_folder.py --agent proto --task.root PICTURES --task.image-size 28
    python scripts/train_image_folder.py --task.root PICTURES       MAML

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "image-folder", *sys.argv[1:]]))
