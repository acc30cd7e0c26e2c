"""Pre-train a backbone: `accelerate launch training/pretrain.py [recipe.yaml] [a.b=c ...]`.

Without a recipe it runs recipes/quickstart.yaml on the embedded images. The folder of the run holds the resolved recipe, the
log, its curves, the checkpoints, the exported backbone and the records of its evaluation.
"""

import sys

from hssl_hf.cli.programs import pretrain

if __name__ == "__main__":
    sys.exit(pretrain(__doc__))
