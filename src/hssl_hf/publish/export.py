"""A pre-trained model -> what everybody can load: its base alone as a stock repository, or the full model to continue training.

Three kinds, one for each branch of a repository: `main`, a stock transformers model (`ViTModel`, `ConvNextModel`,
`ResNetModel`, `SwinModel`, and for every other architecture `TimmWrapperModel`); `timm`, the same weights under timm's names;
`training`, student, teacher and heads. The first two are loaded again in a fresh process that cannot import this package, and
compared with our own outputs.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from transformers import BitImageProcessor

from hssl_hf.errors import UserError
from hssl_hf.modules.backbone import Backbone, has_norm, timm_arguments
from hssl_hf.publish import model_card, parity
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.publish.onnx import save_onnx
from hssl_hf.publish.parity import ExportError
from hssl_hf.publish.timm_wrapper import save_timm_wrapper
from hssl_hf.publish.to_transformers import to_transformers

if TYPE_CHECKING:
    from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel

KINDS = ("training", "timm", "main")
FACTS = "facts.yaml"
__all__ = ["KINDS", "CardContext", "ExportError", "export_backbone", "export_model", "refuse_foreign", "update_card"]


@dataclass(frozen=True)
class CardContext:
    """What is published of a model beside its weights.

    Args:
        about: `recipe`, `manifest`, `subject`, `license`, `base_model`, as far as they are known (`model_card.facts`).
        records: figures, `Record`s as dictionaries.
        figures: files, by their path inside the repository.
        repository, revision: where the model is going to be; cards and snippets name it.
    """

    about: dict = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)
    figures: dict[str, Path] = field(default_factory=dict)
    repository: str = "user/name"
    revision: str = "main"


def export_backbone(
    model: "StudentTeacherPreTrainedModel",
    folder: Path | str,
    *,
    kind: str = "main",
    network: str | None = None,
    processor: BitImageProcessor | None = None,
    context: CardContext | None = None,
    onnx: bool = False,
) -> Path:
    """Write the base model as a stock folder and prove that it is equal.

    Args:
        model: the pre-trained model.
        folder: where to; replaced if it is an export already.
        kind: "main" for transformers, "timm" for timm (which transformers reads too, where timm is installed).
        network: "teacher" or "student"; by default the one that the method keeps.
        processor: saved beside the weights; by default `image_processor` at the model's image size.
        context: for the card.
        onnx: write `onnx/model.onnx` too.
    Returns:
        the folder.
    Raises:
        ExportError: if a reloaded model differs from ours or does not load cleanly.
        UserError: if the folder holds something else.
    """
    network, context = network or model.default_network, context or CardContext()
    base, size = model.get_network(network).base, model.config.image_size
    processor = processor or image_processor(size)

    def write(draft: Path) -> None:
        libraries, sizes = [parity.TRANSFORMERS], [size]
        stock = to_transformers(base, size) if kind == "main" else None
        if stock is not None:
            stock.save_pretrained(draft)
            sizes += [size + 2 * base.stride] if stock.config.model_type != "swin" else []
        else:
            _save_timm(base, model.config, processor, draft)
            libraries.append(parity.TIMM)
        processor.save_pretrained(draft)
        if onnx:
            save_onnx(draft, size)
            libraries.append(parity.ONNX)
        found = {}
        for library in libraries:
            found |= parity.compare(base, draft, sizes, processor, library)
        facts = model_card.facts(model.config, network, without_norm=not has_norm(base), parity=found, **context.about)
        _write_card(draft, facts, context, kind)

    return _whole_or_not_at_all(Path(folder), write)


def export_model(
    model: "StudentTeacherPreTrainedModel",
    folder: Path | str,
    *,
    processor: BitImageProcessor | None = None,
    context: CardContext | None = None,
) -> Path:
    """Write student, teacher and heads, from which training can go on, and read them back; the rest as for `export_backbone`.

    Raises:
        ExportError: if a tensor comes back changed.
    """
    context = context or CardContext()

    def write(draft: Path) -> None:
        model.save_pretrained(draft)
        again, expected = type(model).from_pretrained(draft).state_dict(), model.state_dict()
        changed = [name for name, value in expected.items() if not torch.equal(again[name], value.cpu())]
        if changed:
            raise ExportError(f"the model in {draft} does not read back as it was written: {', '.join(changed[:5])}")
        (processor or image_processor(model.config.image_size)).save_pretrained(draft)
        base = model.get_network().base
        _write_card(
            draft,
            model_card.facts(model.config, model.default_network, without_norm=not has_norm(base), **context.about),
            context,
            "training",
        )

    return _whole_or_not_at_all(Path(folder), write)


def update_card(folder: Path, context: CardContext) -> None:
    """Write the card of an exported backbone anew, now that more is known of it."""
    facts = {**yaml.safe_load((folder / FACTS).read_text()), **{name: value for name, value in context.about.items() if value}}
    _write_card(folder, facts, context, "main")


def refuse_foreign(folder: Path) -> None:
    """Raise a ValueError if a folder to be written holds something else than a model."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.json").is_file())):
        raise UserError(f"{folder} is not empty and is no export; choose another folder")


def _whole_or_not_at_all(folder: Path, write) -> Path:
    """Let `write` fill a folder beside its place, which takes the place of an earlier export when it is complete."""
    refuse_foreign(folder)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        write(draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _save_timm(base: Backbone, config, processor: BitImageProcessor, folder: Path) -> None:
    """With timm's own resampling of positions at other sizes than that of the training, which differs slightly from ours."""
    arguments = timm_arguments(config.backbone, config.image_size, config.backbone_kwargs or {})
    if base.is_transformer:
        arguments |= {"dynamic_img_size": True, **({} if has_norm(base) else {"final_norm": False})}
    save_timm_wrapper(base.model, base.timm_state_dict(), config.backbone, arguments, processor, folder)


def _write_card(folder: Path, facts: dict, context: CardContext, kind: str) -> None:
    """Card, facts, records and figures, beside the weights."""
    where = {"repository": context.repository, "revision": context.revision}
    figures = context.figures if kind == "main" else {}
    (folder / "README.md").write_text(model_card.render(facts, context.records, kind=kind, figures=list(figures), **where))
    (folder / FACTS).write_text(yaml.safe_dump(facts, sort_keys=False))
    entries = model_card.eval_results(facts, context.records) if kind == "main" else None
    if entries:
        (folder / model_card.EVAL_RESULTS).parent.mkdir(exist_ok=True)
        (folder / model_card.EVAL_RESULTS).write_text(entries)
    for name, path in figures.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
