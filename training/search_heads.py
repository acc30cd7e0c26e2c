"""Search the auxiliary head for a recipe: `accelerate launch training/search_heads.py [recipe.yaml] [a.b=c ...]`.

All candidates train at once on one base, on a part of the images. The folder of the search holds their ranking, its picture,
and the recipe with the winner. Interrupted searches go on with resume=auto, as trainings do.
"""

import argparse
import sys
from pathlib import Path

from pretrain import RECIPES, USER_ERRORS, Pretraining, message_of

from hssl_hf.loader import watching_readers
from hssl_hf.recipe import load_recipe
from hssl_hf.search import DEPTH, report, search_recipe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="recipe.yaml | a.b=c", help="a recipe, and values that replace its own")
    parser.add_argument("--candidates", nargs="+", metavar="FAMILY", help="heads to compare (default: all six)")
    parser.add_argument("--share", type=float, default=0.1, help="of the images (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=DEPTH, help="blocks of every candidate (default: %(default)s)")
    options = parser.parse_intermixed_args()
    paths = [Path(a) for a in options.arguments if "=" not in a] or [RECIPES / "quickstart.yaml"]
    try:
        recipe = load_recipe(paths[0], [a for a in options.arguments if "=" in a])
        folder = Path(recipe.run.output_dir or f"runs/search-{paths[0].stem}")
        with watching_readers():
            search = Pretraining(search_recipe(recipe, options.candidates, options.share, options.depth), folder)
            code = search.run()
        if code == 0 and search.accelerator.is_main_process:
            print(f"\n{report(folder, recipe)}")
        return code
    except USER_ERRORS as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
