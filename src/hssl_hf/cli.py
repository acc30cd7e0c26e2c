"""The command line: `hssl-hf pretrain | convert | export | evaluate | replay`.

Libraries are imported by the command that needs them.
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

TRAINING = Path(__file__).resolve().parents[2] / "training"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hssl-hf", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    pretrain = commands.add_parser("pretrain", help="pre-train a backbone (runs accelerate launch training/pretrain.py)")
    pretrain.add_argument(
        "arguments", nargs="*", metavar="recipe.yaml | a.b=c", help="a recipe, and values that replace its own"
    )
    pretrain.add_argument(
        "--launch",
        default=f"--config_file {TRAINING}/accelerate/single.yaml",
        help="options of accelerate launch, for example '--multi_gpu --num_processes 8'",
    )
    pretrain.set_defaults(run=_pretrain)

    export = commands.add_parser("export", help="write the base of a run as a stock transformers folder")
    export.add_argument("checkpoint", type=Path, help="folder of a run, or of one of its checkpoints")
    export.add_argument("folder", type=Path, help="where to write the export")
    export.add_argument("--network", choices=["teacher", "student"], help="default: the one that the method keeps")
    export.set_defaults(run=_export)

    convert = commands.add_parser("convert", help="write an official SiameseIM checkpoint as a folder for transformers")
    convert.add_argument("checkpoint", type=Path, help=".pth or .safetensors, pre-trained or fine-tuned")
    convert.add_argument("folder", type=Path, help="where to write the stock backbone or classifier")
    convert.add_argument("--whole", action="store_true", help="write the model for pre-training instead, to go on with it")
    convert.add_argument("--heads", type=int, help="attention heads of the encoder (default: by its width)")
    convert.add_argument("--decoder-heads", type=int, default=16, help="of projector and decoder (default: %(default)s)")
    convert.set_defaults(run=_convert)

    evaluate = commands.add_parser("evaluate", help="evaluate an export or a Hub repository")
    evaluate.add_argument("export", help="exported folder or Hub repository")
    evaluate.add_argument("protocol", choices=["linear", "knn"])
    evaluate.add_argument("settings", nargs="*", metavar="data.a=b", help="data.path=uoft-cs/cifar10, linear.epochs=50, …")
    evaluate.add_argument("--pixels", action="store_true", help="evaluate the raw pixels that the export would see instead")
    evaluate.add_argument("--results", type=Path, help="file of JSON lines to which the records are added")
    evaluate.add_argument("--subject", help="name of the model in the records (default: the export)")
    evaluate.add_argument("--seed", type=int, default=0, help="seed of its training, for the records (default: %(default)s)")
    evaluate.set_defaults(run=_evaluate)

    replay = commands.add_parser("replay", help="run a step again whose gradients were not finite")
    replay.add_argument("capture", type=Path, help="RUN/captures/step-…, as the error of the run said")
    replay.set_defaults(run=_replay)

    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _pretrain(options: argparse.Namespace) -> int:
    script = TRAINING / "pretrain.py"
    if not script.is_file():
        raise ValueError("training/pretrain.py is part of the source checkout; clone it and install with pip install -e .")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        *options.launch.split(),
        str(script),
    ]
    os.execv(sys.executable, [*command, *options.arguments])


def _export(options: argparse.Namespace) -> int:
    from hssl_hf.export import export_backbone, load_model
    from hssl_hf.stock import image_processor

    model, recipe = load_model(options.checkpoint)
    processor = image_processor(model.config.image_size, recipe.probe.crop_share, recipe.views.mean, recipe.views.std)
    folder = export_backbone(model, options.folder, network=options.network, processor=processor)
    print(f'from transformers import AutoModel; model = AutoModel.from_pretrained("{folder}")')
    return 0


def _convert(options: argparse.Namespace) -> int:
    from hssl_hf.convert import convert_checkpoint

    heads = {"decoder_heads": options.decoder_heads, "backbone_kwargs": {"num_heads": options.heads}}
    print(convert_checkpoint(options.checkpoint, options.folder, whole=options.whole, **heads))
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
