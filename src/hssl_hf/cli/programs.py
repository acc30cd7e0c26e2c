"""The programs that `accelerate launch` starts."""

import argparse
import sys
import warnings
from pathlib import Path

import transformers

import hssl_hf
from hssl_hf.config.recipe import load_recipe
from hssl_hf.config.strict_yaml import RecipeError
from hssl_hf.data.loader import watching_readers
from hssl_hf.errors import UserError
from hssl_hf.experiments.head_search import DEPTH, report, search_recipe
from hssl_hf.pretraining.trainer import Pretraining

warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11 with torch 2.14
hssl_hf.register()
transformers.logging.disable_progress_bar()
RECIPES = Path(__file__).resolve().parents[3] / "training" / "recipes"


def message_of(error: Exception) -> str:
    """What an error says, without the traceback of a worker."""
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


def pretrain(description: str | None = None) -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="recipe.yaml | a.b=c", help="a recipe, and values that replace its own")
    arguments = parser.parse_intermixed_args().arguments
    paths = [Path(a) for a in arguments if "=" not in a] or [RECIPES / "quickstart.yaml"]
    try:
        if len(paths) > 1:
            raise RecipeError(f"expected one recipe, got {', '.join(map(str, paths))}")
        recipe = load_recipe(paths[0], [a for a in arguments if "=" in a])
        with watching_readers():
            return Pretraining(recipe, Path(recipe.run.output_dir or f"runs/{paths[0].stem}")).run()
    except UserError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2


def search_heads(description: str | None = None) -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    except UserError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2
