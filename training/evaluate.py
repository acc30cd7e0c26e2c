"""Evaluate a frozen backbone: `accelerate launch training/evaluate.py MODEL PROTOCOL [recipe.yaml] [a.b=c ...]`."""

import sys

from hssl_hf.cli.programs import evaluate, launch

if __name__ == "__main__":
    sys.exit(launch(evaluate))
