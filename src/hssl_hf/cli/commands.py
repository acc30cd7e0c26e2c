"""What the commands of the command line do. Libraries are imported by the command that needs them."""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

TRAINING = Path(__file__).resolve().parents[3] / "training"


def pretrain(options: argparse.Namespace) -> int:
    return _launch("pretrain.py", options.launch, options.arguments)


def search(options: argparse.Namespace) -> int:
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


def export(options: argparse.Namespace) -> int:
    from hssl_hf.publish.export import export_backbone, export_model
    from hssl_hf.runs.run_directory import RunFolder

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


def push(options: argparse.Namespace) -> int:
    from hssl_hf.publish.hub import push, stage
    from hssl_hf.runs.run_directory import RunFolder

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


def view(options: argparse.Namespace) -> int:
    from hssl_hf.runs.html_report import write_report

    print(write_report(options.run_folder, options.output))
    return 0


def plan(options: argparse.Namespace) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    from hssl_hf.config.recipe import load_recipe
    from hssl_hf.pretraining.estimate import foresee, write_forecast

    paths = [Path(a) for a in options.arguments if "=" not in a] or [TRAINING / "recipes" / "quickstart.yaml"]
    recipe = load_recipe(paths[0], [a for a in options.arguments if "=" in a])
    forecast = foresee(recipe, options.engine, options.processes, options.memory, options.tflops)
    print(forecast.table())
    if options.output:
        write_forecast(options.output, forecast)
    return 0


def convert(options: argparse.Namespace) -> int:
    from hssl_hf.convert import convert_checkpoint

    heads = {"decoder_heads": options.decoder_heads, "backbone_kwargs": {"num_heads": options.heads}}
    print(convert_checkpoint(options.checkpoint, options.folder, method=options.method, whole=options.whole, **heads))
    return 0


def replay(options: argparse.Namespace) -> int:
    from hssl_hf.pretraining.replay import replay

    for report in replay(options.capture):
        bad = report["not_finite"]
        print(report["process"], *(f"{name} {value:.4g}" for name, value in report["losses"].items()), sep="  ")
        print(f"  gradients that are not finite: {len(bad)}" + "".join(f"\n    {name}" for name in bad))
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from hssl_hf.config.strict_yaml import build, override
    from hssl_hf.evaluation.encoder import load_encoder, pixels_encoder
    from hssl_hf.evaluation.linear import LinearConfig
    from hssl_hf.evaluation.probe import Probe

    tree = {"linear": {}}
    for setting in options.settings:
        if setting.startswith("linear."):
            override(tree, setting)
    linear = build(LinearConfig, tree["linear"], "linear.")
    config = _labelled([setting for setting in options.settings if not setting.startswith("linear.")])
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


def complement(options: argparse.Namespace) -> int:
    from hssl_hf.evaluation.complementarity import complementarity, draw
    from hssl_hf.evaluation.encoder import load_encoder
    from hssl_hf.evaluation.probe import Probe

    config, names, features = _labelled(options.settings), (options.first, options.second), []
    for name in names:
        encoder, processor = load_encoder(name)
        probe = Probe(config, processor)
        features.append(probe.features(encoder, name))
    banks, queries = (tuple(part for part, _ in split) for split in zip(*features, strict=True))
    (_, bank_labels), (_, labels) = features[0]
    found = complementarity(banks, bank_labels, queries, labels, points=options.points, **probe.knn_settings())
    draw(found, names, options.output)
    rows = [("knn_top1", accuracy, "percent", {"alpha": alpha}) for alpha, accuracy in found.curve]
    rows += [("N_s", found.apart, "images", {}), ("sIoU", found.overlap, "share", {})]
    for metric, value, unit, more in rows:
        if unit == "percent":
            print(f"α = {more['alpha']:.2f}   k-NN top1  {value:.2f} %")
        else:
            print(f"{metric}  {value:.4g}")
        if options.results:
            settings = {**probe.knn_settings(), **more}
            probe.record(metric, value, found.n, settings, " + ".join(names), 0, options.results, unit)
    print(options.output)
    return 0


def _labelled(settings: list[str]):
    """Images to evaluate on, from values `data.a=b`.

    Raises:
        ValueError: if no dataset is named.
    """
    from hssl_hf.config.recipe import load_recipe

    config = load_recipe(None, [f"probe.{setting.removeprefix('data.')}" for setting in settings]).probe
    if config.path is None:
        raise ValueError("say which images to evaluate on, for example data.path=uoft-cs/cifar10")
    return config
