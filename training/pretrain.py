"""Pre-train a backbone: `accelerate launch training/pretrain.py [recipe.yaml] [a.b=c ...]`."""

import sys

from hssl_hf.cli.programs import launch, pretrain

if __name__ == "__main__":
    sys.exit(launch(pretrain))
