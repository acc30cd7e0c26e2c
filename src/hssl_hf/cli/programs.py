"""The programs that `accelerate launch` starts; libraries are imported when they run."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from posixpath import isfile
from typing import Annotated

from typer import Argument, Option

from hssl_hf.cli.console import new_app, run
from hssl_hf.config.recipe_files import EVALUATIONS, RECIPES, TRAINING, Protocol, find_recipe
from hssl_hf.engine.signals import stopping_signals

Settings = Annotated[
    list[str] | None,
    Argument(metavar="[RECIPE] [a.b=c ...]", help="Name or file of a recipe, and values that replace its own."),
]
Candidates = Annotated[list[str] | None, Option(metavar="FAMILY", help="Heads to compare, one option each (default: all).")]
DataFraction = Annotated[float, Option(help="Fraction of the images to train on, above 0 and up to 1.")]
TakeOver = Annotated[bool, Option("--take-over", help="Claim the folder from a process that hangs or is gone.")]
Model = Annotated[str, Argument(help="Exported folder, Hub repository, or timm:NAME.")]
EvaluationSettings = Annotated[
    list[str] | None,
    Argument(metavar="[RECIPE] [a.b=c ...]", help="Recipe of an evaluation, and values, such as data.path=uoft-cs/cifar10."),
]
Baselines = Annotated[
    bool | None,
    Option(
        "--baselines/--no-baselines",
        help="Evaluate the untrained backbone and raw pixels too (default: unless features are computed in every epoch).",
    ),
]
Revision = Annotated[str | None, Option(help="Branch, tag or commit of a repository, such as training.")]
Estimate = Annotated[bool, Option("--estimate", help="Estimate time, memory and disk on a few images instead.")]
Token = Annotated[str | None, Option(help="Token of the Hub (default: from `hf auth login` or HF_TOKEN).")]
EvaluationOutput = Annotated[Path | None, Option(help="Folder for records and predictions, which `hssl-hf compare` reads.")]
Results = Annotated[Path | None, Option(help="File of JSON lines to which the records are added.")]
Subject = Annotated[str | None, Option(help="Name of the model in the records (default: MODEL as given).")]
TrainingSeed = Annotated[int, Option(help="Seed of its training, for the records; also of the untrained backbone.")]
Depth = Annotated[int, Option(help="Blocks of every candidate.")]


def pretrain(settings: Settings = None, take_over: TakeOver = False) -> int:
    """Pre-train a backbone in this process. Without a recipe it runs the quick start on the embedded images."""
    with stopping_signals():
        return pretrain_with(*read_recipe(settings), take_over=take_over)[0]


def search(
    settings: Settings = None,
    candidates: Candidates = None,
    data_fraction: DataFraction = 0.1,
    depth: Depth = 1,
    take_over: TakeOver = False,
) -> int:
    """Search the auxiliary head for a recipe in this process."""
    with stopping_signals():
        return search_with(*read_recipe(settings), candidates, data_fraction, depth, take_over)[0]


def evaluate(
    export: Model,
    protocol: Protocol,
    settings: EvaluationSettings = None,
    results: Results = None,
    output: EvaluationOutput = None,
    subject: Subject = None,
    seed: TrainingSeed = 0,
    baselines: Baselines = None,
    revision: Revision = None,
    token: Token = None,
    estimate: Estimate = False,
) -> int:
    """Evaluate a frozen backbone in this process."""
    from accelerate import PartialState

    from hssl_hf.data.loader import worker_errors_as_stream_errors
    from hssl_hf.engine.distributed import ended_peers_as_errors
    from hssl_hf.experiments import frozen_evaluation as library

    path, overrides = _one_recipe(settings, EVALUATIONS)
    if estimate:
        print(library.estimate(export, protocol, path, overrides, revision, token).table())
        return 0
    with stopping_signals(), worker_errors_as_stream_errors(), ended_peers_as_errors():
        records = library.evaluate(
            export, protocol, path, overrides, results, output, subject, seed, baselines, revision, token
        )  # fmt: skip
    if PartialState().is_main_process:
        print(library.describe(records))
    return 0


def pretrain_with(recipe, name: str, take_over: bool = False) -> tuple[int, Path]:
    """Pre-train by a recipe of this name; returns the exit code and the folder of the run."""
    folder = Path(recipe.run.output_dir or f"runs/{name}")
    return train(recipe, folder, take_over)[0], folder


def search_with(
    recipe, name: str, candidates: list[str] | None, data_fraction: float, depth: int, take_over: bool = False
) -> tuple[int, Path]:
    """Search the head of a recipe and report the ranking; returns the exit code and the folder of the search."""
    from hssl_hf.experiments.head_search import report, search_recipe

    folder = Path(recipe.run.output_dir or f"runs/search-{name}")
    code, is_main_process = train(search_recipe(recipe, candidates, data_fraction, depth), folder, take_over)
    if code == 0 and is_main_process:
        print(f"\n{report(folder, recipe)}")
    return code, folder


def read_recipe(settings: list[str] | None):
    """The recipe that a command line names, by default the quick start, and its name.

    Raises:
        UserError: for more than one recipe, an unknown one, and for what `load_recipe` refuses.
    """
    from hssl_hf.config.recipe import load_recipe

    path, overrides = _one_recipe(settings, RECIPES)
    path = path or find_recipe("quickstart")
    return load_recipe(path, overrides), path.stem


def _one_recipe(settings: Sequence[str] | None, folder: Path) -> tuple[Path | None, list[str]]:
    """File of the recipe that a command line names, None if it names none, and the overrides."""
    from hssl_hf.config.recipe import RecipeError

    names, overrides = split_settings(settings or ())
    if len(names) > 1:
        raise RecipeError(f"expected one recipe, got {', '.join(names)}")
    return (find_recipe(names[0], folder) if names else None), overrides


def split_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of recipes, and overrides `a.b=c`; a file is a recipe also where its path has a `=`."""
    names = [setting for setting in settings if "=" not in setting or isfile(setting)]
    return names, [setting for setting in settings if setting not in names]


def train(recipe, folder: Path, take_over: bool = False) -> tuple[int, bool]:
    """Train in this process; returns the exit code, and whether this is the main process.

    Args:
        take_over: claim the folder even if another process trains in it.
    """
    import warnings

    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11 with torch 2.14
    warnings.filterwarnings("ignore", category=FutureWarning)  # which libraries address to each other
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # a copy of small gradients
    import transformers

    from hssl_hf.data.loader import worker_errors_as_stream_errors
    from hssl_hf.engine.distributed import ended_peers_as_errors
    from hssl_hf.pretraining.trainer import PreTrainer
    from hssl_hf.runs.run_lock import RunLock

    transformers.logging.disable_progress_bar()
    lock = RunLock(folder, take_over)
    with stopping_signals() as signals, lock, worker_errors_as_stream_errors(), ended_peers_as_errors():
        trainer = PreTrainer(recipe, folder, lock, signals)
        with signals.deferred():
            code = trainer.train()
    print("\n".join(trainer.summary), end="\n" if trainer.summary else "")
    return code, trainer.accelerator.is_main_process


def launch(program: Callable[..., int], arguments: list[str] | None = None) -> int:
    """Run a program with command-line arguments, by default those of this process; returns its exit code.

    The folder of a launcher leaves the import path, since `evaluate.py` in it would be taken for the library of this name.
    """
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != TRAINING]
    return run(new_app(program, add_completion=False), arguments)
