"""The commands: one typed function each, which imports the libraries that it needs."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from hssl_hf.cli import programs
from hssl_hf.cli.programs import (
    Baselines,
    Candidates,
    DataFraction,
    Depth,
    Estimate,
    EvaluationOutput,
    EvaluationSettings,
    Model,
    Results,
    Revision,
    Settings,
    Subject,
    TakeOver,
    Token,
    TrainingSeed,
    read_recipe,
)
from hssl_hf.config.recipe_files import EVALUATIONS, RECIPES, TRAINING, Protocol, find_recipe, recipe_notes
from hssl_hf.config.recipe_files import recipes as all_recipes
from hssl_hf.errors import reading
from hssl_hf.publish.kinds import HELP, Kind

Method = Literal["siamese_im", "hssl", "ibot", "dino", "moco_v3", "mae"]
Launch = Annotated[
    str | None,
    Option(
        metavar="OPTIONS",
        help="Start processes by accelerate launch, for example '--config_file fsdp2 --num_processes 8' (a file or one of "
        "ours); by default training runs in this process.",
    ),
]
Run = Annotated[Path, Argument(metavar="RUN", help="Folder of a run, or of one of its checkpoints.")]
DataSettings = Annotated[
    list[str] | None, Argument(metavar="[a.b=c ...]", help="For example data.path=uoft-cs/cifar10, knn.num_neighbors=[10].")
]
WhichNetwork = Annotated[Literal["teacher", "student"] | None, Option(help="Network to export (default: that of the method).")]
License = Annotated[str | None, Option(help="License of the weights, for the card, for example apache-2.0.")]
Onnx = Annotated[bool, Option("--onnx", help="Add an ONNX file, checked under onnxruntime.")]


def pretrain(settings: Settings = None, launch: Launch = None, take_over: TakeOver = False) -> int:
    """Pre-train a backbone. Without a recipe it runs the quick start on the embedded images.

    The folder of the run holds the resolved recipe, the log, its curves, the checkpoints, the exported backbone and the
    records of its evaluation.
    """
    if launch is None:
        return programs.pretrain(settings, take_over)
    return _launch(launch, ["pretrain", *(settings or []), *_words(take_over=take_over or None)])


def search(
    settings: Settings = None,
    candidates: Candidates = None,
    data_fraction: DataFraction = 0.1,
    depth: Depth = 1,
    launch: Launch = None,
    take_over: TakeOver = False,
) -> int:
    """Search the auxiliary head for a recipe, without labels: train all candidates on one base and a fraction of the images.

    The folder of the search holds their ranking, its figure, and the recipe with the winner. Interrupted searches continue with
    resume_from_checkpoint=auto, as trainings do.
    """
    if launch is None:
        return programs.search(settings, candidates, data_fraction, depth, take_over)
    options = {"candidates": candidates, "data_fraction": data_fraction, "depth": depth, "take_over": take_over or None}
    return _launch(launch, ["search", *(settings or []), *_words(**options)])


def estimate(
    settings: Settings = None,
    engine: Annotated[Literal["single", "ddp", "fsdp2", "zero1", "zero2"], Option(help="Distributed strategy.")] = "ddp",
    processes: Annotated[int, Option(help="Number of processes, from 1.")] = 1,
    device_memory: Annotated[
        float | None, Option(metavar="GIB", help="Memory of a device, above 0 (default: that of this machine).")
    ] = None,
    device_tflops: Annotated[
        float | None, Option(metavar="T", help="TFLOP/s of a device in training, above 0 (default: measured here).")
    ] = None,
    output: Annotated[Path | None, Option(metavar="RUN", help="Write the estimate to RUN/estimate.json, too.")] = None,
) -> None:
    """Estimate memory and time of a recipe before a launch."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    from hssl_hf.data.files import require_writable
    from hssl_hf.pretraining import estimate as library

    if output:
        require_writable(output)
    result = library.estimate(read_recipe(settings)[0], engine, processes, device_memory, device_tflops)
    print(result.table())
    if output:
        library.write_estimate(output, result)


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
    launch: Launch = None,
) -> int:
    """Evaluate a frozen backbone: k-NN, a linear probe, or measures that need no labels.

    Figures are those of the test split, with 95 % intervals over its images. Features are kept on disk (`hssl-hf cache`).
    """
    options = {"results": results, "output": output, "subject": subject, "seed": seed, "baselines": baselines}
    options |= {"revision": revision, "token": token, "estimate": estimate or None}
    if launch is None:
        return programs.evaluate(export, protocol, settings, **options)
    return _launch(launch, ["evaluate", export, protocol, *(settings or []), *_words(**options)])


def cache(clear: Annotated[bool, Option("--clear", help="Remove all of them.")] = False) -> None:
    """List the features of evaluations that are kept on disk, or remove them."""
    from hssl_hf.evaluation.feature_cache import FeatureCache

    features = FeatureCache()
    print(f"removed {features.clear():.2f} GiB from {features.folder}" if clear else features.table())


def complementarity(
    first: Model,
    second: Model,
    settings: DataSettings = None,
    points: Annotated[int, Option(help="Number of weights from 0 to 1.")] = 11,
    output: Annotated[Path, Option(help="File of the curve.")] = Path("complementarity.png"),
    results: Results = None,
) -> None:
    """Compare two backbones by linear combinations.

    Does each classify images correctly that the other does not?
    """
    from hssl_hf.experiments.complementarity import complementarity_curve

    print("\n".join(complementarity_curve(first, second, settings or [], points, output, results)))


def compare(
    evaluations: Annotated[
        list[Path], Argument(metavar="A B ...", help="Folders of `evaluate --output`, or files of records.")
    ],
    output: Annotated[Path, Option(help="Folder for table and figures.")] = Path("comparison"),
) -> None:
    """Compare models that were evaluated: a table with intervals, classes, confusions and the most certain mistakes."""
    from hssl_hf.experiments.comparison import compare as library

    print("\n".join(library(evaluations, output)))


def export(
    run: Run,
    folder: Annotated[Path | None, Argument(help="Where to write the export (default: RUN/export).")] = None,
    kind: Annotated[Kind, Option(help="; ".join(f"{kind}: {text}" for kind, text in HELP.items()) + ".")] = "main",
    network: WhichNetwork = None,
    license: License = None,
    onnx: Onnx = False,
) -> None:
    """Write the base of a run as a stock model."""
    from hssl_hf.runs.run_directory import RunDirectory

    directory = RunDirectory.open(run)
    print(directory.export(folder or directory.folder / "export", kind, network, license, onnx))


def push(
    run: Run,
    repository: Annotated[str, Argument(help="user/name")],
    private: Annotated[bool | None, Option("--private", help="Create a private repository.")] = None,
    token: Annotated[str | None, Option(help="Token of the Hub (default: from `hf auth login` or HF_TOKEN).")] = None,
    revision: Annotated[str, Option(help="Branch of the stock model.")] = "main",
    create_pr: Annotated[bool, Option("--create-pr", help="Open pull requests instead of committing.")] = False,
    commit_message: Annotated[str, Option(help="Title of the commits.")] = "Upload a pre-trained backbone",
    dry_run: Annotated[bool, Option("--dry-run", help="Make all checks and write RUN/push, but upload nothing.")] = False,
    network: WhichNetwork = None,
    license: License = None,
    onnx: Onnx = False,
) -> None:
    """Publish a run on the Hub.

    Pushes the stock model, the timm model, feature maps, and the full model to continue training.
    """
    from hssl_hf.publish.hub import push as library
    from hssl_hf.publish.push_checks import check_push
    from hssl_hf.runs.run_directory import RunDirectory

    check_push(repository, revision, token, license, commit_message, dry_run)
    staged = RunDirectory.open(run).stage(repository, revision, network, license, onnx, token)
    options = {"private": private, "token": token, "revision": revision, "create_pr": create_pr, "dry_run": dry_run}
    commits = library(staged, repository, **options, commit_message=commit_message)
    if dry_run:
        print(f"{staged} holds what would be uploaded to {repository}")
    for kind, commit in commits.items():
        print(f"{kind:10s}{commit.pr_url or commit.commit_url}")


def convert(
    checkpoint: Annotated[Path, Argument(help=".pth, .safetensors or Jittor .pkl, pre-trained or fine-tuned.")],
    folder: Annotated[Path, Argument(help="Where to write the stock backbone or classifier.")],
    method: Annotated[Method | None, Option(help="Method of the checkpoint (default: by the names of the tensors).")] = None,
    for_pretraining: Annotated[
        bool, Option("--for-pretraining", help="Write the model for pre-training instead, with teacher and heads.")
    ] = False,
    num_attention_heads: Annotated[
        int | None, Option(help="Attention heads of the encoder (default: 12 for MoCo v3, else by its width).")
    ] = None,
    decoder_num_attention_heads: Annotated[int, Option(help="Attention heads of projector and decoder.")] = 16,
) -> None:
    """Convert an official checkpoint to a folder that transformers loads."""
    from hssl_hf.convert import convert_checkpoint

    heads = {"backbone_kwargs": {"num_heads": num_attention_heads}, "decoder_num_attention_heads": decoder_num_attention_heads}
    print(convert_checkpoint(checkpoint, folder, method=method, for_pretraining=for_pretraining, **heads))


def report(
    run: Annotated[Path, Argument(metavar="RUN", help="Folder of a run, finished or not.")],
    output: Annotated[Path | None, Option(help="File to write (default: RUN/report.html).")] = None,
) -> None:
    """Write one HTML page about a run."""
    from hssl_hf.runs.html_report import write_report

    print(write_report(run, output))


def replay(capture: Annotated[Path, Argument(help="RUN/captures/step-..., which the error message names.")]) -> None:
    """Replay a step whose gradients were not finite."""
    from hssl_hf.pretraining.replay import replay as library

    for micro_batch in library(capture):
        print(micro_batch)


def recipes(name: Annotated[str | None, Argument(help="Show this recipe instead of listing all.")] = None) -> None:
    """List the recipes with their table, the paper's number and their cost."""
    if name is not None:
        path = find_recipe(name, EVALUATIONS if name in all_recipes(EVALUATIONS) else RECIPES)
        with reading(path, "name a recipe"):
            text = path.read_text(encoding="utf-8")
        print(text, end="")
        return
    for name, path in {**all_recipes(), **all_recipes(EVALUATIONS)}.items():
        print(f"{name}\n    " + "\n    ".join(recipe_notes(path)))


def _launch(options: str, arguments: list[str]) -> int:
    """Start a command in processes of `accelerate launch`; `--config_file` takes the name of one of our files too."""
    from hssl_hf.engine.launcher import run_launcher

    configs = {path.stem: str(path) for path in (TRAINING / "accelerate").glob("*.yaml")}
    with reading(f"--launch {options!r}", "close its quotation marks"):
        words = shlex.split(options)
    return run_launcher([configs.get(word, word) for word in words], arguments)


def _words(**options: object) -> list[str]:
    """Options as a command line has them; those of None are left out."""
    words = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            each = value if isinstance(value, list) else [value]
            words += [word for item in each if item is not None for word in (f"--{option}", str(item))]
    return words


COMMANDS = {
    function.__name__: function
    for function in (
        pretrain,
        search,
        estimate,
        evaluate,
        cache,
        complementarity,
        compare,
        export,
        push,
        convert,
        report,
        replay,
        recipes,
    )
}
