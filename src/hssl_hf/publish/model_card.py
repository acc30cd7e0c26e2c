"""Model cards, rendered from a template, the facts of a run and its results. No number in a card has another source.

The facts are plain values (`facts`), saved as YAML with the model, so that its card can be rendered again.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from transformers import MODEL_FOR_PRETRAINING_MAPPING, AutoConfig

from hssl_hf.fields import Section, make
from hssl_hf.publish import card_text
from hssl_hf.publish.citations import CITATIONS
from hssl_hf.publish.kinds import KINDS, branch
from hssl_hf.publish.markdown import block, code, plain
from hssl_hf.publish.origin import Origin, Release, as_plain, settle, timm_origin
from hssl_hf.publish.paper_differences import paper_differences
from hssl_hf.publish.redaction import is_hub_id

if TYPE_CHECKING:
    from hssl_hf.models.configuration_base import PreTrainingConfig

TEMPLATES = (Path(__file__).with_name("card_template.md"), Path(__file__).parents[3] / "model_cards" / "template.md")
LIBRARY = {"timm": "timm", "training": "hssl_hf"}  # of all other kinds transformers
METRICS = {
    "knn_top1": "k-NN top-1",
    "knn_top5": "k-NN top-5",
    "linear_top1": "linear probe top-1",
    "linear_top5": "linear probe top-5",
}
SUBJECT = "pre-trained backbone"
EVAL_RESULTS = ".eval_results/hssl_hf.yaml"


def facts(config: "PreTrainingConfig", network: str, *, without_norm: bool, **kwargs) -> dict:
    """Everything that a card reports except results.

    Args:
        config: of the model that was trained.
        network: the exported one, "teacher" or "student".
        without_norm: the features are those before the final norm of the transformers model.
        kwargs: any of `recipe` and `manifest` (`hssl_hf.runs.manifest`), `parity` (`hssl_hf.publish.parity`), `backbone_class`
            (class in transformers of the kind "backbone"), `tokens` (output of the stock model with the tokens of a backbone
            without final norm), `onnx` (whether there is an ONNX file), `subject` (model name in the results), `license`,
            `tags`, `release` and `origin` (`hssl_hf.publish.origin`, as plain values; by default that of weights from timm).
    """
    values = {name: getattr(config, name) for name in config.declarations()}
    unset = {name for name, value in values.items() if value is None and getattr(type(config), name) is None}
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if name not in unset}
    required = {"config": {"model_type": config.model_type, **plain}, "network": network, "without_norm": without_norm}
    kwargs["origin"] = kwargs.get("origin") or as_plain(timm_origin(config.backbone, config.backbone_kwargs))
    return {**required, **{key: value for key, value in kwargs.items() if value}}


def render(
    facts: dict, records: list[dict] = (), *, kind: str = "main", repository: str = "user/name", revision: str = "main",
    figures: list[str] = (),
) -> str:  # fmt: skip
    """A model card as Markdown.

    Args:
        facts: from `facts`.
        records: `Record`s as dictionaries.
        kind: one of `KINDS`, or "classifier".
        repository: id on the Hub, for the code snippets.
        revision: branch of the stock model, from which the names of the others are derived.
        figures: paths of images inside the repository; only those in `card_text.FIGURES` are shown.
    """
    config, recipe = AutoConfig.for_model(**facts["config"]), facts.get("recipe", {})
    branches = {name: branch(revision, name) for name in KINDS}
    model_class = MODEL_FOR_PRETRAINING_MAPPING[type(config)].__name__
    channels, full_model = config.num_channels, kind == "training"
    release, origin = _section(Release, facts, "release"), _section(Origin, facts, "origin")
    method = release.method if release else None
    card = ModelCard.from_template(
        _metadata(facts, records, kind, repository),
        template_path=str(next(path for path in TEMPLATES if path.is_file())),
        title=card_text.title(config, kind, method),
        summary=card_text.summary(config, facts["network"], kind, method),
        onnx_usage=card_text.onnx_usage(kind, facts, repository, branches.get(kind, revision), channels)
        if facts.get("onnx") else None,
        usage=card_text.usage(kind, facts, repository, branches.get(kind, revision), model_class, channels),
        about=card_text.about(kind, facts),
        timm_usage=card_text.timm_usage(repository, branches["timm"], channels) if kind == "main" else None,
        timm_revision=branches["timm"],
        segmentation_usage=card_text.segmentation_usage(facts, repository, branches) if kind in ("main", "backbone") else None,
        detection_usage=card_text.DETECTOR if kind == "backbone" else None,
        backbone_revision=branches["backbone"] if facts.get("backbone_class") else None,
        training_revision=branches["training"] if recipe and not full_model else None,
        repository=repository,
        provenance=card_text.provenance(release, origin, _license(facts)),
        results=_tables(records) if kind == "main" else [],
        figures=[] if full_model else [(name, caption) for name, caption in card_text.FIGURES.items() if name in figures],
        training=card_text.training(facts["manifest"]) if "manifest" in facts else [],
        recipe_yaml=block(yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=110).strip(), "yaml"),
        parity=[] if full_model else card_text.parity(facts),
        differences=paper_differences(config.described_in()) if "manifest" in facts else [],
        config=facts["config"], data=code(_data_path(facts)) if _data_path(facts) else None, origin=origin,
        shortened=card_text.shortened(recipe), commit=facts.get("manifest", {}).get("commit"),
        citations=[CITATIONS.get(method, config.citation)],
    )  # fmt: skip
    lines = "\n".join(line.rstrip() for line in card.content.strip().splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines) + "\n"  # a template leaves consecutive empty lines


def eval_results(facts: dict, records: list[dict]) -> str | None:
    """Content of `EVAL_RESULTS` for results on datasets of the Hub; None without any."""
    subject = facts.get("subject", SUBJECT)
    entries = [
        EvalResultEntry(
            dataset_id=record["dataset"],
            task_id=record["metric"],
            value=record["value"],
            dataset_revision=record["revision"],
            date=record["date"],
            notes=", ".join(f"{key}: {value}" for key, value in record["settings"].items() if value),
        )
        for record in records
        if record["subject"] == subject and is_hub_id(record["dataset"])
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False) if entries else None


def _metadata(facts: dict, records: list[dict], kind: str, repository: str) -> ModelCardData:
    data, subject = _data_path(facts), facts.get("subject", SUBJECT)
    evaluations = [
        EvalResult(
            task_type="image-classification",
            dataset_type=record["dataset"],
            dataset_name=record["dataset"].split("/")[-1],
            dataset_split=record["split"],
            dataset_revision=record["revision"],
            metric_type="accuracy",
            metric_name=METRICS[record["metric"]],
            metric_value=round(record["value"], 2),
        )
        for record in records
        if record["subject"] == subject and record["metric"] in METRICS
    ]
    tag = "image-classification" if kind == "classifier" else None if kind == "training" else "image-feature-extraction"
    tags = ["self-supervised-learning", "vision", facts["config"]["model_type"].replace("_", "-"), *facts.get("tags", [])]
    return ModelCardData(
        library_name=LIBRARY.get(kind, "transformers"), pipeline_tag=tag, tags=tags, **_terms(facts),
        datasets=[data] if is_hub_id(data) else None,
        **({"model_name": repository.split("/")[-1], "eval_results": evaluations} if evaluations and kind == "main" else {}),
    )  # fmt: skip


def _data_path(facts: dict) -> str | None:
    path = facts.get("manifest", {}).get("data", {}).get("path")
    return path if isinstance(path, str) else None


def _license(facts: dict) -> str | None:
    """The license of the weights; raises a LicenseError if their origin does not allow it."""
    return settle(facts["config"].get("license"), facts.get("license"), _section(Origin, facts, "origin"))


def _terms(facts: dict) -> dict:
    """Metadata about license and base model."""
    license, origin = _license(facts), _section(Origin, facts, "origin")
    values = {"license": license}
    if origin and license == "other":
        values |= {"license_name": origin.license_name, "license_link": origin.license_link}
    if origin and origin.base_model:
        several = list(origin.base_model)
        values |= {"base_model": several if len(several) > 1 else several[0], "base_model_relation": "finetune"}
    return {name: value for name, value in values.items() if value}


def _section(kind: type[Section], facts: dict, name: str) -> Section | None:
    return make(kind, facts[name], name) if facts.get(name) else None


def _tables(records: list[dict]) -> list[tuple[str, list[tuple[str, str]]]]:
    """One table per metric and number of neighbors, with every subject's value, and a caption with dataset and settings."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        if record["metric"] in METRICS:
            groups.setdefault((record["metric"], record["settings"].get("num_neighbors", 0)), []).append(record)
    tables = []
    for (metric, _), rows in sorted(groups.items(), key=lambda item: (list(METRICS).index(item[0][0]), item[0][1])):
        first = rows[0]
        settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in first["settings"].items() if value)
        data = f"{first['dataset']}, split {first['split']}, {first['n']} images"
        interval = ", with 95 % intervals over the images" if first.get("interval") else ""
        caption = plain(f"{METRICS[metric]} in {first['unit']} on {data}{interval}; {settings}.")
        tables.append((caption, [(plain(record["subject"]), _value(record)) for record in rows]))
    return tables


def _value(record: dict) -> str:
    low, high = record.get("interval") or (None, None)
    return f"{record['value']:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")
