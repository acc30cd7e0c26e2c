"""The command line: `hssl-hf COMMAND`. Libraries are imported by the command that needs them."""

import argparse
import sys
import traceback
from pathlib import Path

from hssl_hf.cli import commands

DESCRIPTION = """\
Heterogeneous self-supervised learning and siamese image modeling: pre-train, look, evaluate, publish.

Exit codes: 0 done, 2 an error that the message explains, 75 interrupted with a checkpoint (queue the job again), 130 Ctrl-C."""
EPILOG = """\
examples:
  hssl-hf pretrain                                         the quick start: real images, a few minutes on two cores
  hssl-hf pretrain recipe.yaml data.path=user/images       a recipe, with a value replaced
  hssl-hf view runs/quickstart                             one HTML page of everything that the run has left
  hssl-hf push runs/quickstart user/name --private         to the Hub: stock model, timm model, and the whole to go on with
  eval "$(hssl-hf completion bash)"                        completion of commands and options
"""


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError) as error:
        if options.traceback:
            traceback.print_exc()
        else:
            print(f"error: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="hssl-hf", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run, text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        return command

    _add_pretrain(add("pretrain", commands.pretrain, "pre-train a backbone (runs accelerate launch training/pretrain.py)"))
    search = "search the auxiliary head for a recipe, without labels (runs accelerate launch training/search_heads.py)"
    _add_search(add("search", commands.search, search))
    _add_plan(add("plan", commands.plan, "foresee memory and time of a recipe before it is launched"))
    _add_evaluate(add("evaluate", commands.evaluate, "evaluate an export or a Hub repository"))
    _add_complement(
        add(
            "complement", commands.complement, "combine two exports or Hub repositories: does each know what the other does not"
        )
    )
    _add_export(add("export", commands.export, "write the base of a run as a stock model"))
    _add_push(add("push", commands.push, "bring a run to the Hub: stock model, timm model, and the whole to go on with"))
    _add_convert(add("convert", commands.convert, "write an official checkpoint as a folder for transformers"))
    view = add("view", commands.view, "write one HTML page of everything that a run has left")
    view.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a run, finished or not")
    view.add_argument("--output", type=Path, help="where to write it (default: RUN/report.html)")
    replay = add("replay", commands.replay, "run a step again whose gradients were not finite")
    replay.add_argument("capture", type=Path, help="RUN/captures/step-…, as the error of the run said")
    completion = add("completion", _completion, "print a script that completes commands and options in a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return parser


def _add_pretrain(command: argparse.ArgumentParser) -> None:
    values = "a recipe, and values that replace its own"
    command.add_argument("arguments", nargs="*", metavar="recipe.yaml | a.b=c", help=values)
    command.add_argument(
        "--launch",
        default=f"--config_file {commands.TRAINING}/accelerate/single.yaml",
        help="options of accelerate launch, for example '--multi_gpu --num_processes 8' (default: one process)",
    )


def _add_search(command: argparse.ArgumentParser) -> None:
    _add_pretrain(command)
    command.add_argument("--candidates", nargs="+", metavar="FAMILY", help="heads to compare (default: all six)")
    command.add_argument("--share", type=float, default=0.1, help="of the images (default: %(default)s)")
    command.add_argument("--depth", type=int, default=1, help="blocks of every candidate (default: %(default)s)")


def _add_plan(command: argparse.ArgumentParser) -> None:
    values = "a recipe, and values that replace its own"
    command.add_argument("arguments", nargs="*", metavar="recipe.yaml | a.b=c", help=values)
    command.add_argument(
        "--engine", choices=["single", "ddp", "fsdp2", "zero1", "zero2"], default="ddp", help="default: %(default)s"
    )
    command.add_argument("--processes", type=int, default=1, help="how many (default: %(default)s)")
    command.add_argument("--memory", type=float, metavar="GIB", help="of one device (default: of the one here)")
    command.add_argument("--tflops", type=float, metavar="T", help="of one device in training (default: measured here)")
    command.add_argument("--output", type=Path, metavar="RUN", help="keep the plan in the folder of the run that is to come")


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("export", help="exported folder or Hub repository")
    command.add_argument("protocol", choices=["linear", "knn"])
    command.add_argument("settings", nargs="*", metavar="data.a=b", help="data.path=uoft-cs/cifar10, linear.epochs=50, …")
    command.add_argument("--pixels", action="store_true", help="evaluate the raw pixels that the export would see instead")
    command.add_argument("--results", type=Path, help="file of JSON lines to which the records are added")
    command.add_argument("--subject", help="name of the model in the records (default: the export)")
    command.add_argument("--seed", type=int, default=0, help="seed of its training, for the records (default: %(default)s)")


def _add_complement(command: argparse.ArgumentParser) -> None:
    command.add_argument("first", help="exported folder or Hub repository")
    command.add_argument("second", help="another one")
    command.add_argument("settings", nargs="*", metavar="data.a=b", help="as for evaluate: data.path=uoft-cs/cifar10, …")
    command.add_argument("--points", type=int, default=11, help="weights from 0 to 1 (default: %(default)s)")
    command.add_argument("--output", type=Path, default=Path("complement.png"), help="the curve (default: %(default)s)")
    command.add_argument("--results", type=Path, help="file of JSON lines to which the records are added")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a run, or of one of its checkpoints")
    command.add_argument("--network", choices=["teacher", "student"], help="default: the one that the method keeps")
    command.add_argument("--license", help="of the weights, for the card, for example apache-2.0")
    command.add_argument("--onnx", action="store_true", help="with an ONNX file, checked under onnxruntime")


def _add_export(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.add_argument("folder", type=Path, nargs="?", help="where to write the export (default: RUN/export)")
    kinds = "main: transformers; timm: timm's names; training: student, teacher and heads (default: %(default)s)"
    command.add_argument("--kind", choices=["main", "timm", "training"], default="main", help=kinds)


def _add_push(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.add_argument("repository", help="user/name")
    command.add_argument("--private", action="store_true", default=None, help="if the repository is created")
    command.add_argument("--token", help="default: the one of `hf auth login` or HF_TOKEN")
    command.add_argument("--revision", default="main", help="branch of the stock model (default: %(default)s)")
    command.add_argument("--create-pr", action="store_true", help="open pull requests instead of committing")
    command.add_argument("--message", default="Upload a pre-trained backbone", help="title of the commits")
    command.add_argument("--dry-run", action="store_true", help="only write to RUN/push what would be uploaded")


def _add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", type=Path, help=".pth, .safetensors or Jittor .pkl, pre-trained or fine-tuned")
    command.add_argument("folder", type=Path, help="where to write the stock backbone or classifier")
    methods = ["siamese_im", "hssl", "ibot", "dino", "moco_v3", "mae"]
    command.add_argument("--method", choices=methods, help="default: by the names of the tensors")
    command.add_argument("--whole", action="store_true", help="write the model for pre-training instead, to go on with it")
    command.add_argument("--heads", type=int, help="attention heads of the encoder (default: by its width)")
    command.add_argument("--decoder-heads", type=int, default=16, help="of projector and decoder (default: %(default)s)")


def _completion(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(make_parser(), shell=options.shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
