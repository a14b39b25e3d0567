"""Meta-train a learner to tell characters apart that it has seen once, in scripts that it has never seen.

The characters come with MetaRL (`metarl/fewshot/data/glyphs`): nothing is downloaded. Comparing pixels gives an
accuracy of 0.49 on five characters, one example each; a prototypical network is expected far above.

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
