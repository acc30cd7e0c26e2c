"""The command line: `hssl-hf COMMAND`. Libraries are imported by the command that needs them."""

import argparse
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

TRAINING = Path(__file__).resolve().parents[2] / "training"
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
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        return command

    _add_pretrain(add("pretrain", _pretrain, "pre-train a backbone (runs accelerate launch training/pretrain.py)"))
    search = "search the auxiliary head for a recipe, without labels (runs accelerate launch training/search_heads.py)"
    _add_search(add("search", _search, search))
    _add_plan(add("plan", _plan, "foresee memory and time of a recipe before it is launched"))
    _add_evaluate(add("evaluate", _evaluate, "evaluate an export or a Hub repository"))
    _add_export(add("export", _export, "write the base of a run as a stock model"))
    _add_push(add("push", _push, "bring a run to the Hub: stock model, timm model, and the whole to go on with"))
    _add_convert(add("convert", _convert, "write an official checkpoint as a folder for transformers"))
    view = add("view", _view, "write one HTML page of everything that a run has left")
    view.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a run, finished or not")
    view.add_argument("--output", type=Path, help="where to write it (default: RUN/report.html)")
    replay = add("replay", _replay, "run a step again whose gradients were not finite")
    replay.add_argument("capture", type=Path, help="RUN/captures/step-…, as the error of the run said")
    completion = add("completion", _completion, "print a script that completes commands and options in a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return parser


def _add_pretrain(command: argparse.ArgumentParser) -> None:
    values = "a recipe, and values that replace its own"
    command.add_argument("arguments", nargs="*", metavar="recipe.yaml | a.b=c", help=values)
    command.add_argument(
        "--launch",
        default=f"--config_file {TRAINING}/accelerate/single.yaml",
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


def _pretrain(options: argparse.Namespace) -> int:
    return _launch("pretrain.py", options.launch, options.arguments)


def _search(options: argparse.Namespace) -> int:
    candidates = ["--candidates", *options.candidates] if options.candidates else []
    return _launch(
        "search_heads.py",
        options.launch,
        [*options.arguments, "--share", str(options.share), "--depth", str(options.depth), *candidates],
    )


def _launch(name: str, launcher: str, arguments: list[str]) -> int:
    """Become `accelerate launch training/<name>`."""
    script = TRAINING / name
    if not script.is_file():
        raise ValueError(f"training/{name} is part of the source checkout; clone it and install with pip install -e .")
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *launcher.split(), str(script)]
    os.execv(sys.executable, [*command, *arguments])


def _export(options: argparse.Namespace) -> int:
    from hssl_hf.export import export_backbone, export_model
    from hssl_hf.run_folder import RunFolder

    run = RunFolder.open(options.run_folder)
    folder, shared = (
        options.folder or run.folder / "export",
        {"processor": run.processor, "story": run.story(license=options.license)},
    )
    if options.kind == "training":
        export_model(run.model, folder, **shared)
    else:
        export_backbone(run.model, folder, kind=options.kind, network=options.network, onnx=options.onnx, **shared)
    print(folder)
    return 0


def _push(options: argparse.Namespace) -> int:
    from hssl_hf.hub import push, stage
    from hssl_hf.run_folder import RunFolder

    run = RunFolder.open(options.run_folder)
    story = run.story(license=options.license, repository=options.repository, revision=options.revision)
    folder = stage(
        run.model, run.folder / "push", network=options.network, processor=run.processor, story=story, onnx=options.onnx
    )
    if options.dry_run:
        print(f"{folder} holds what would be uploaded to {options.repository}")
        return 0
    asked = {name: getattr(options, name) for name in ("private", "token", "revision", "create_pr")}
    for kind, address in push(folder, options.repository, **asked, commit_message=options.message).items():
        print(f"{kind:10s}{address}")
    return 0


def _view(options: argparse.Namespace) -> int:
    from hssl_hf.report import write_report

    print(write_report(options.run_folder, options.output))
    return 0


def _plan(options: argparse.Namespace) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    from hssl_hf.forecast import foresee, write_forecast
    from hssl_hf.recipe import load_recipe

    paths = [Path(a) for a in options.arguments if "=" not in a] or [TRAINING / "recipes" / "quickstart.yaml"]
    recipe = load_recipe(paths[0], [a for a in options.arguments if "=" in a])
    forecast = foresee(recipe, options.engine, options.processes, options.memory, options.tflops)
    print(forecast.table())
    if options.output:
        write_forecast(options.output, forecast)
    return 0


def _completion(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(make_parser(), shell=options.shell))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from hssl_hf.convert import convert_checkpoint

    heads = {"decoder_heads": options.decoder_heads, "backbone_kwargs": {"num_heads": options.heads}}
    print(convert_checkpoint(options.checkpoint, options.folder, method=options.method, whole=options.whole, **heads))
    return 0


def _replay(options: argparse.Namespace) -> int:
    from hssl_hf.capture import replay

    for report in replay(options.capture):
        bad = report["not_finite"]
        print(report["process"], *(f"{name} {value:.4g}" for name, value in report["losses"].items()), sep="  ")
        print(f"  gradients that are not finite: {len(bad)}" + "".join(f"\n    {name}" for name in bad))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from hssl_hf.evaluate.encoder import load_encoder, pixels_encoder
    from hssl_hf.evaluate.linear import LinearConfig
    from hssl_hf.probe import Probe
    from hssl_hf.recipe import load_recipe
    from hssl_hf.strict_yaml import build, override

    tree = {"linear": {}}
    for setting in options.settings:
        if setting.startswith("linear."):
            override(tree, setting)
    linear = build(LinearConfig, tree["linear"], "linear.")
    data = [setting for setting in options.settings if not setting.startswith("linear.")]
    config = load_recipe(None, [f"probe.{setting.removeprefix('data.')}" for setting in data]).probe
    if config.path is None:
        raise ValueError("say which images to evaluate on, for example data.path=uoft-cs/cifar10")
    encoder, processor = load_encoder(options.export)
    encoder, probe = pixels_encoder if options.pixels else encoder, Probe(config, processor)
    if options.protocol == "knn":
        found, settings = probe.knn(encoder, "k-NN"), probe.knn_settings()
    else:
        found = probe.linear(encoder, linear, "linear probe")
        settings = {**asdict(linear), "learning_rate": found["learning_rate"]}
        print(f"learning rate {found['learning_rate']} per 256, {found['validation_top1']:.2f} % on held-out training images")
    for metric in ("top1", "top5"):
        print(f"{options.protocol.replace('knn', 'k-NN')} {metric}  {found[metric]:.2f} %  ({found['n']} images)")
        if options.results:
            subject = options.subject or ("raw pixels" if options.pixels else options.export)
            name = f"{options.protocol}_{metric}"
            probe.record(name, found[metric], found["n"], settings, subject, options.seed, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
