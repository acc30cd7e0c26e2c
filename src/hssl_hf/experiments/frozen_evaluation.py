"""Evaluations of frozen backbones as the command line runs them: settings in, records and lines of text out."""

from dataclasses import asdict
from pathlib import Path

from hssl_hf.config.recipe import load_recipe
from hssl_hf.config.strict_yaml import build, override
from hssl_hf.data.files import require_output
from hssl_hf.errors import UserError
from hssl_hf.evaluation.complementarity import FORMATS, Points, complementarity, draw
from hssl_hf.evaluation.encoder import load_encoder, raw_pixel_encoder
from hssl_hf.evaluation.linear import LinearConfig
from hssl_hf.evaluation.probe import Probe, ProbeConfig
from hssl_hf.fields import Seed, check

PROTOCOLS = {"knn": "k-NN", "linear": "linear"}  # their names on the screen


def evaluate(
    export: str | Path,
    protocol: str,
    settings: list[str],
    pixels: bool = False,
    results: Path | str | None = None,
    subject: str | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Evaluate an export by k-NN or a linear probe.

    Args:
        export: folder or Hub repository.
        protocol: "knn" or "linear".
        settings: `data.a=b` of the images, `linear.a=b` of the probe.
        pixels: evaluate raw pixels instead, as the export's processor prepares them.
        results: file to which the records are added, or None.
        subject: name of the model in the records; None for the export.
        seed: of its training, for the records.
    Returns:
        top1 and top5 in percent, the number n of test images, and for the linear probe `learning_rate` per 256 with its
        `validation_top1` on held-out training images.
    Raises:
        UserError: for an unknown protocol or setting, and images or models that cannot be read.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"expected a protocol of {list(PROTOCOLS)}, got {protocol!r}")
    export, seed = str(export), check(Seed, seed, "seed")
    require_output(results, "results")
    tree = {"linear": {}}
    for setting in settings:
        if setting.startswith("linear."):
            override(tree, setting)
    linear = build(LinearConfig, tree["linear"], "linear")
    config = _labeled_images([setting for setting in settings if not setting.startswith("linear.")])
    encoder, processor = load_encoder(export)
    encoder, probe = raw_pixel_encoder if pixels else encoder, Probe(config, processor)
    if protocol == "knn":
        result, used = probe.knn(encoder, "k-NN"), probe.knn_settings()
    else:
        result = probe.linear(encoder, linear, "linear probe")
        used = {**asdict(linear), "learning_rate": result["learning_rate"]}
    for metric in ("top1", "top5") if results else ():
        name = subject or ("raw pixels" if pixels else export)
        probe.record(f"{protocol}_{metric}", result[metric], result["n"], used, name, seed, results)
    return result


def describe(protocol: str, result: dict[str, float]) -> str:
    """A result of `evaluate` for the screen."""
    held_out = "learning rate {learning_rate} per 256, {validation_top1:.2f} % on held-out training images\n"
    figures = "".join(f"{PROTOCOLS[protocol]} {top}  {{{top}:.2f}} %  ({{n}} images)\n" for top in ("top1", "top5"))
    return ((held_out if "learning_rate" in result else "") + figures).format(**result).rstrip()


def compare(
    first: str | Path, second: str | Path, settings: list[str], points: int, output: Path | str, results: Path | str | None
) -> list[str]:
    """Classify by linear combinations of two frozen backbones, and draw the curve.

    Args:
        first, second: folders or Hub repositories.
        settings: as for `evaluate`.
        points: weights from 0 to 1.
        output: file of the curve.
        results: file to which the records are added, or None.
    Returns:
        lines for the screen.
    Raises:
        UserError: before any work, for numbers and files that cannot be; and as `evaluate`.
    """
    first, second, points = str(first), str(second), check(Points, points, "points")
    require_output(output, "output", *FORMATS)
    require_output(results, "results")
    config, features = _labeled_images(settings), []
    for name in (first, second):
        encoder, processor = load_encoder(name)
        probe = Probe(config, processor)
        features.append(probe.features(encoder, name))
    curve, counts = complementarity(*features, points, **probe.knn_settings())
    draw(curve, (first, second), output)
    lines = [f"α = {alpha:.2f}   k-NN top1  {accuracy:.2f} %" for alpha, accuracy in curve]
    for name, who in (("only_first", f"{first} alone"), ("only_second", f"{second} alone"), ("both", "both")):
        lines.append(f"{counts[name]} test images are classified right by {who}")
    lines.append(str(output))
    values = [("knn_top1", accuracy, "percent", {"alpha": alpha}) for alpha, accuracy in curve]
    values += [(f"knn_right_{name}", count, "images", {}) for name, count in counts.items()]
    _, (_, labels) = features[0]
    for metric, value, unit, alpha in values if results else ():
        probe.record(metric, value, len(labels), {**probe.knn_settings(), **alpha}, f"{first} + {second}", 0, results, unit)
    return lines


def _labeled_images(settings: list[str]) -> ProbeConfig:
    """Images to evaluate on, from values `data.a=b`.

    Raises:
        UserError: if no dataset is named.
    """
    config = load_recipe(None, [f"probe.{setting.removeprefix('data.')}" for setting in settings]).probe
    if config.path is None:
        raise UserError("name the images to evaluate on, for example data.path=uoft-cs/cifar10")
    return config
