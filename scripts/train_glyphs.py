"""Meta-train a learner to tell characters apart after one example of each, in scripts unseen in training.

The characters come with MetaRL (`metarl/fewshot/data/glyphs`); nothing is downloaded. Comparing pixels reaches an
accuracy of 0.49 on five characters with one example each. Expect far more from a prototypical network.

    python scripts/train_glyphs.py --agent proto --preset quick      about two minutes on two cores
    python scripts/train_glyphs.py --agent maml --preset quick       some minutes (an estimate)
    python scripts/train_glyphs.py --agent proto                     the default preset, half an hour (an estimate)
    python scripts/train_glyphs.py --agent maml                      the default preset, hours (an estimate)

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "glyphs", *sys.argv[1:]]))
