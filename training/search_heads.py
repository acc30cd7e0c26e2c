"""Search the auxiliary head for a recipe: `accelerate launch training/search_heads.py [recipe.yaml] [a.b=c ...]`."""

import sys

from hssl_hf.cli.programs import launch, search

if __name__ == "__main__":
    sys.exit(launch(search))
