"""The commands: one typed function each, which imports the libraries that it needs."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from hssl_hf.cli.programs import Candidates, DataFraction, Depth, Settings, read_recipe
from hssl_hf.errors import UserError

TRAINING = Path(__file__).resolve().parents[3] / "training"


Network = Literal["teacher", "student"]
Kind = Literal["main", "timm", "training"]
Protocol = Literal["knn", "linear"]
Engine = Literal["single", "ddp", "fsdp2", "zero1", "zero2"]
Method = Literal["siamese_im", "hssl", "ibot", "dino", "moco_v3", "mae"]
Launch = Annotated[
    str, typer.Option(help="Options of accelerate launch, for example '--multi_gpu --num_processes 8' (default: one process).")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of one of its checkpoints.")]
Model = Annotated[str, typer.Argument(help="Exported folder or Hub repository.")]
DataSettings = Annotated[
    list[str] | None, typer.Argument(metavar="[data.a=b ...]", help="For example data.path=uoft-cs/cifar10, linear.epochs=50.")
]
Results = Annotated[Path | None, typer.Option(help="File of JSON lines to which the records are added.")]
WhichNetwork = Annotated[Network | None, typer.Option(help="Network to export (default: that of the method).")]
License = Annotated[str | None, typer.Option(help="License of the weights, for the card, for example apache-2.0.")]
Onnx = Annotated[bool, typer.Option("--onnx", help="Add an ONNX file, checked under onnxruntime.")]
SINGLE = f"--config_file {shlex.quote(str(TRAINING / 'accelerate' / 'single.yaml'))}"


def pretrain(settings: Settings = None, launch: Launch = SINGLE) -> int:
    """Pre-train a backbone.

    Runs `accelerate launch training/pretrain.py`.
    """
    return _launch("pretrain.py", launch, settings or [])


def search(
    settings: Settings = None,
    candidates: Candidates = None,
    data_fraction: DataFraction = 0.1,
    depth: Depth = 1,
    launch: Launch = SINGLE,
) -> int:
    """Search the auxiliary head for a recipe, without labels.

    Runs `accelerate launch training/search_heads.py`.
    """
    options = [word for family in candidates or () for word in ("--candidates", family)]
    options += ["--data-fraction", str(data_fraction), "--depth", str(depth)]
    return _launch("search_heads.py", launch, [*(settings or []), *options])


def estimate(
    settings: Settings = None,
    engine: Annotated[Engine, typer.Option(help="Distributed strategy.")] = "ddp",
    processes: Annotated[int, typer.Option(help="Number of processes.")] = 1,
    device_memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Memory of a device (default: of this one).")
    ] = None,
    device_tflops: Annotated[
        float | None, typer.Option(metavar="T", help="TFLOP/s of a device in training (default: measured here).")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="RUN", help="Keep the estimate in the folder of the run.")] = None,
) -> int:
    """Estimate memory and time of a recipe before a launch."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    from hssl_hf.pretraining import estimate as library

    found = library.estimate(read_recipe(settings)[0], engine, processes, device_memory, device_tflops)
    print(found.table())
    if output:
        library.write_estimate(output, found)
    return 0


def evaluate(
    export: Model,
    protocol: Protocol,
    settings: DataSettings = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Evaluate the raw pixels that the export would see instead.")
    ] = False,
    results: Results = None,
    subject: Annotated[str | None, typer.Option(help="Name of the model in the records (default: the export).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of its training, for the records.")] = 0,
) -> int:
    """Evaluate a backbone on labeled images."""
    from hssl_hf.experiments.frozen_evaluation import evaluate as library

    print("\n".join(library(export, protocol, settings or [], pixels, results, subject, seed)))
    return 0


def complementarity(
    first: Model,
    second: Model,
    settings: DataSettings = None,
    points: Annotated[int, typer.Option(help="Number of weights from 0 to 1.")] = 11,
    output: Annotated[Path, typer.Option(help="File of the curve.")] = Path("complementarity.png"),
    results: Results = None,
) -> int:
    """Compare two backbones by linear combinations.

    Does each classify images correctly that the other does not?
    """
    from hssl_hf.experiments.frozen_evaluation import compare

    print("\n".join(compare(first, second, settings or [], points, output, results)))
    return 0


def export(
    run: Run,
    folder: Annotated[Path | None, typer.Argument(help="Where to write the export (default: RUN/export).")] = None,
    kind: Annotated[
        Kind, typer.Option(help="main: transformers; timm: timm's names; training: student, teacher and heads.")
    ] = "main",
    network: WhichNetwork = None,
    license: License = None,
    onnx: Onnx = False,
) -> int:
    """Write the base of a run as a stock model."""
    from hssl_hf.runs.run_directory import RunDirectory

    opened = RunDirectory.open(run)
    print(opened.export(folder or opened.folder / "export", kind, network, license, onnx))
    return 0


def push(
    run: Run,
    repository: Annotated[str, typer.Argument(help="user/name")],
    private: Annotated[bool | None, typer.Option("--private", help="Create a private repository.")] = None,
    token: Annotated[str | None, typer.Option(help="Default: that of `hf auth login` or HF_TOKEN.")] = None,
    revision: Annotated[str, typer.Option(help="Branch of the stock model.")] = "main",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open pull requests instead of committing.")] = False,
    commit_message: Annotated[str, typer.Option(help="Title of the commits.")] = "Upload a pre-trained backbone",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only write to RUN/push what would be uploaded.")] = False,
    network: WhichNetwork = None,
    license: License = None,
    onnx: Onnx = False,
) -> int:
    """Publish a run on the Hub.

    Pushes the stock model, the timm model, and the full model to continue training.
    """
    from hssl_hf.publish.hub import push as library
    from hssl_hf.runs.run_directory import RunDirectory

    staged = RunDirectory.open(run).stage(repository, revision, network, license, onnx)
    if dry_run:
        print(f"{staged} holds what would be uploaded to {repository}")
        return 0
    options = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
    for kind, address in library(staged, repository, **options, commit_message=commit_message).items():
        print(f"{kind:10s}{address}")
    return 0


def convert(
    checkpoint: Annotated[Path, typer.Argument(help=".pth, .safetensors or Jittor .pkl, pre-trained or fine-tuned.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the stock backbone or classifier.")],
    method: Annotated[
        Method | None, typer.Option(help="Method of the checkpoint (default: by the names of the tensors).")
    ] = None,
    for_pretraining: Annotated[
        bool, typer.Option("--for-pretraining", help="Write the model for pre-training instead, with teacher and heads.")
    ] = False,
    num_attention_heads: Annotated[int | None, typer.Option(help="Of the encoder (default: by its width).")] = None,
    decoder_num_attention_heads: Annotated[int, typer.Option(help="Of projector and decoder.")] = 16,
) -> int:
    """Convert an official checkpoint to a folder that transformers loads."""
    from hssl_hf.convert import convert_checkpoint

    changes = {
        "decoder_num_attention_heads": decoder_num_attention_heads,
        "backbone_kwargs": {"num_heads": num_attention_heads},
    }
    print(convert_checkpoint(checkpoint, folder, method=method, for_pretraining=for_pretraining, **changes))
    return 0


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not.")],
    output: Annotated[Path | None, typer.Option(help="File to write (default: RUN/report.html).")] = None,
) -> int:
    """Write one HTML page about a run."""
    from hssl_hf.runs.html_report import write_report

    print(write_report(run, output))
    return 0


def replay(capture: Annotated[Path, typer.Argument(help="RUN/captures/step-..., as named by the error of the run.")]) -> int:
    """Replay a step whose gradients were not finite."""
    from hssl_hf.pretraining.replay import replay as library

    for micro_batch in library(capture):
        print(micro_batch)
    return 0


def _launch(program: str, launcher: str, arguments: list[str]) -> int:
    """Become `accelerate launch training/<program>`."""
    script = TRAINING / program
    if not script.is_file():
        raise UserError(f"training/{program} is part of the source checkout; clone it and install it with pip install -e .")
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *shlex.split(launcher), str(script)]
    os.execv(sys.executable, [*command, *arguments])


COMMANDS = {
    function.__name__: function
    for function in (
        pretrain, search, estimate, evaluate, complementarity, export, push, convert, report, replay,
    )
}  # fmt: skip
