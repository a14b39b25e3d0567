"""Meta-train a learner to predict a sine wave from ten of its points (Finn et al. 2017, arXiv:1703.03400, section 5.1).

Without adaptation a network can only predict the mean of all waves, with a mean squared error near 3. Expect less than
1 after one gradient step of MAML, and less with every further step.

    python scripts/train_sinusoid.py --preset quick            within a minute
    python scripts/train_sinusoid.py                           the paper's 70,000 iterations, six minutes or more
    python scripts/train_sinusoid.py --agent fine-tune         the baseline: joint training, then gradient steps

Every flag of `metarl train` works: `--help` lists them.
"""

import sys

from metarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "sinusoid", *sys.argv[1:]]))
