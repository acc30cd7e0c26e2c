"""Evaluations of frozen backbones as the command line runs them: settings in, records, predictions and lines of text out."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from hssl_hf.config.evaluation_recipe import EvaluationRecipe, load_evaluation_recipe
from hssl_hf.data.files import require_output, require_writable
from hssl_hf.engine.distributed import make_accelerator, on_main_process
from hssl_hf.errors import UserError, writing
from hssl_hf.evaluation.augmented_features import features_of_two_crops
from hssl_hf.evaluation.classification import Classification
from hssl_hf.evaluation.encoder import Encoder, load_encoder, raw_pixel_encoder, untrained
from hssl_hf.evaluation.extraction import Extractor
from hssl_hf.evaluation.feature_cache import FeatureCache
from hssl_hf.evaluation.features import FeatureSet
from hssl_hf.evaluation.images import LabeledImages
from hssl_hf.evaluation.knn import knn_accuracy
from hssl_hf.evaluation.label_free import alignment, rank_me, uniformity
from hssl_hf.evaluation.linear_probe import linear_probe
from hssl_hf.evaluation.predictions import Predictions, most_certain_mistakes
from hssl_hf.evaluation.records import PIXELS, UNTRAINED, Record
from hssl_hf.evaluation.splits import extract_splits, split_record
from hssl_hf.experiments.evaluation_estimate import EvaluationEstimate, estimate_evaluation, raw_pixel_gib
from hssl_hf.fields import Seed, check
from hssl_hf.runs.run_directory import RESULTS

MOST_PIXELS = 8  # GiB of raw pixels of both splits, which are held at once
PROTOCOLS = {"knn": "k-NN", "linear": "linear", "label_free": "label-free"}  # their names on the screen

logger = logging.getLogger(__name__)


class Measured(NamedTuple):
    """What a protocol gives for one encoder.

    Args:
        records: its figures.
        result: the classes of the test images, if it classifies.
        test: these images.
    """

    records: list[Record]
    result: Classification | None = None
    test: FeatureSet | None = None


def evaluate(
    export: str | Path,
    protocol: str,
    recipe: str | Path | None = None,
    settings: list[str] = (),
    results: Path | str | None = None,
    output: Path | str | None = None,
    subject: str | None = None,
    seed: int = 0,
    baselines: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> list[Record]:
    """Evaluate an export by a protocol, on the device and in the processes that are there.

    Args:
        export: folder, Hub repository, or `timm:NAME`.
        protocol: "knn", "linear" or "label_free".
        recipe: file of an evaluation's recipe; None for the defaults of the protocol.
        settings: `a.b=c` that replace its values, at least `data.path`.
        results: file to which the records are added, or None.
        output: folder for records and predictions, which `hssl-hf compare` reads, or None.
        subject: name of the model in the records; None for the export.
        seed: of its training, for the records, and of the weights of the untrained backbone.
        baselines: evaluate the untrained backbone and raw pixels too; None unless a linear probe computes features anew in
            every epoch.
        revision: branch, tag or commit of a repository.
        token: of the Hub.
    Returns:
        the records: top1 and top5 in percent with their intervals, by k-NN of every number of neighbors or the chosen linear
        classifier; without labels RankMe, alignment and uniformity.
    Raises:
        UserError: for an unknown protocol or setting, and images or models that cannot be read.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"expected a protocol of {list(PROTOCOLS)}, got {protocol!r}")
    export, seed = str(export), check(Seed, seed, "seed")
    require_output(results, "results")
    if output is not None:
        require_writable(output)
    configuration = load_evaluation_recipe(protocol, recipe, list(settings))
    extractor, encoder = prepare(export, configuration, revision, token)
    encoders = {subject or (f"{export}@{revision}" if revision else export): encoder}
    is_costly = protocol == "linear" and configuration.linear.augment
    if baselines or (baselines is None and not is_costly):
        encoders |= {UNTRAINED: untrained(encoder, seed)} | _raw_pixels(configuration, extractor)
    records = []
    for name, each in encoders.items():
        measured = list(measure(configuration, extractor, each, name, seed))
        records += [record for of_settings in measured for record in of_settings.records]
        write = lambda measured=measured: _write(measured, configuration, extractor, results, output)  # noqa: E731
        on_main_process(extractor.accelerator, write)
    return records


def estimate(
    export: str | Path,
    protocol: str,
    recipe: str | Path | None,
    settings: list[str],
    revision: str | None = None,
    token: str | None = None,
) -> EvaluationEstimate:
    """What `evaluate` will take for one encoder; arguments and errors as of it."""
    configuration = load_evaluation_recipe(protocol, recipe, list(settings))
    return estimate_evaluation(configuration, *prepare(str(export), configuration, revision, token))


def prepare(
    name: str, recipe: EvaluationRecipe, revision: str | None = None, token: str | None = None
) -> tuple[Extractor, Encoder]:
    """A loaded backbone, and what computes its features."""
    (encoder, processor), config = load_encoder(name, revision, token), recipe.extraction
    cache = FeatureCache(config.cache_limit_gib) if config.cache else None
    return Extractor(make_accelerator(False, 1, config.batch_size), processor, config, cache), encoder


def measure(
    recipe: EvaluationRecipe, extractor: Extractor, encoder: Encoder | Callable, subject: str, seed: int
) -> Iterator[Measured]:
    """The figures of one encoder by the protocol of a recipe; arguments and errors as of `evaluate`."""
    data, representation = recipe.data, recipe.representation
    if encoder is raw_pixel_encoder:
        representation = replace(representation, features="cls", blocks=1)
    described = (data, representation)
    if recipe.protocol == "label_free":
        yield Measured(_label_free(recipe, extractor, encoder, (*described, subject, seed)))
    elif recipe.protocol == "knn":
        splits = extract_splits(extractor, encoder, data, representation, f"{PROTOCOLS['knn']} {subject}")
        for number, result in knn_accuracy(extractor.accelerator, *splits, recipe.knn).items():
            used = {"num_neighbors": number, "temperature": recipe.knn.temperature}
            yield Measured(_accuracies("knn", result, *described, used, subject, seed), result, splits.test)
    else:
        probe = linear_probe(extractor, encoder, data, representation, recipe.linear)
        used = asdict(recipe.linear) | probe.settings
        records = _accuracies("linear", probe.classification, *described, used, subject, seed)
        best = ("linear_top1_best_on_test", probe.best_on_test, len(probe.classification))
        records.append(split_record(*best, *described, used, subject, seed))
        yield Measured(records, probe.classification, probe.test)


def _accuracies(
    protocol: str, result: Classification, data, representation, used: dict, subject: str, seed: int
) -> list[Record]:
    """top1 and top5 of one classifier."""
    settings = (data, representation, used, subject, seed)
    return [
        split_record(f"{protocol}_top{k}", result.accuracy(k), len(result), *settings, interval=result.interval(k))
        for k in (1, 5)
    ]


def _label_free(recipe: EvaluationRecipe, extractor: Extractor, encoder: Encoder | Callable, described: tuple) -> list[Record]:
    """RankMe, alignment and uniformity on images of the test split, whose labels are not read."""
    data, representation, subject, seed = described
    limit = min(recipe.label_free.images, data.test_images or recipe.label_free.images)
    config = replace(recipe.label_free, images=limit)
    _, test = replace(data, test_images=limit).splits(extractor.processor)
    test = LabeledImages(test.source, test.limit, channels=test.channels, labeled=False)
    features = extractor.extract(encoder, test, representation, f"label-free: {test.source.split}").features
    crops = features_of_two_crops(extractor, encoder, test, representation, config)
    values = {
        "rank_me": (rank_me(features), "dimensions", len(features)),
        "alignment": (alignment(*crops), "squared distance", len(crops[0])),
        "uniformity": (uniformity(features), "log", len(features)),
    }
    used = (data, representation, asdict(config), subject, seed)
    return [split_record(f"label_free_{name}", v, n, *used, unit=unit) for name, (v, unit, n) in values.items()]


def _raw_pixels(recipe: EvaluationRecipe, extractor: Extractor) -> dict[str, Callable]:
    """The baseline of raw pixels, unless those of all images would fill the memory, or are not known to leave room."""
    size = raw_pixel_gib(recipe, extractor)
    if size is not None and size <= MOST_PIXELS:
        return {PIXELS: raw_pixel_encoder}
    known = "their number is not known" if size is None else f"they take {size:.3g} GiB, of which {MOST_PIXELS} are allowed"
    if extractor.accelerator.is_main_process:
        logger.warning("raw pixels are not evaluated beside the model: %s; limit data.train_images and data.test_images", known)
    return {}


def _write(measured: list[Measured], recipe: EvaluationRecipe, extractor: Extractor, results, output) -> None:
    """Add the records of one encoder to their file, and both records and predictions to a folder."""
    if output is not None:
        with writing(output):
            Path(output).mkdir(parents=True, exist_ok=True)
    for path in (results, None if output is None else Path(output) / RESULTS):
        for record in [record for of_settings in measured for record in of_settings.records] if path is not None else ():
            record.append_to(path)
    classified = [of_settings for of_settings in measured if of_settings.result is not None]
    if output is None or not classified:
        return
    test, (_, images) = classified[0].test, recipe.data.splits(extractor.processor)
    mistakes = most_certain_mistakes([of_settings.result for of_settings in classified], test, images)
    for (records, result, _), shown in zip(classified, mistakes, strict=True):
        first, number = records[0], records[0].settings.get("num_neighbors")
        protocol = recipe.protocol if number is None else f"{recipe.protocol} k={number}"
        source = (first.subject, protocol, first.dataset, first.split)
        Predictions(*source, result, test.classes, test.positions, *shown).save(Path(output))


def describe(records: list[Record]) -> str:
    """Records of one evaluation for the screen."""
    lines, subject = [], None
    for record in records:
        protocol = next(name for name in PROTOCOLS if record.metric.startswith(f"{name}_"))
        metric = record.metric.removeprefix(f"{protocol}_")
        if record.subject != subject:
            subject = record.subject
            lines.append(subject)
        if "validation_top1" in record.settings and metric == "top1":
            held_out = "  learning rate {learning_rate} per 256, {validation_top1:.2f} % on held-out training images"
            lines.append(held_out.format(**record.settings))
        number = f" k={record.settings['num_neighbors']:<4d}" if "num_neighbors" in record.settings else ""
        interval = "  [{:.2f}, {:.2f}]".format(*record.interval) if record.interval else ""
        value = f"{record.value:.2f} %" if record.unit == "percent" else f"{record.value:.3f} {record.unit}"
        name = metric.replace("_", " ")
        lines.append(f"  {PROTOCOLS[protocol]}{number} {name}  {value}{interval}  ({record.n} images)")
    return "\n".join(lines)
