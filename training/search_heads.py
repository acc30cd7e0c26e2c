"""Search the auxiliary head for a recipe: `accelerate launch training/search_heads.py [recipe.yaml] [a.b=c ...]`.

All candidates train at once on one base, on a part of the images. The folder of the search holds their ranking, its picture,
and the recipe with the winner. Interrupted searches go on with resume=auto, as trainings do.
"""

import sys

from hssl_hf.cli.programs import search_heads

if __name__ == "__main__":
    sys.exit(search_heads(__doc__))
