"""Export a pre-trained model: its base alone as a stock model, or the full model to continue training.

Four kinds, one per branch of a repository: `main`, a stock transformers model (`ViTModel`, `ConvNextModel`, `ResNetModel`,
`SwinModel`, and `TimmWrapperModel` for every other architecture); `timm`, the same weights under timm's names; `backbone`, the
same weights in the class of transformers that returns feature maps (`Dinov2Backbone` for a ViT, `ConvNextBackbone`,
`ResNetBackbone`, `SwinBackbone`; no other architecture has one); `training`, student, teacher and heads. All but the last are
loaded in a fresh process that cannot import this package, and their outputs are compared with those of the trained model.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from transformers import BitImageProcessor, PreTrainedModel

from hssl_hf.data.channels import default_normalization
from hssl_hf.data.files import read_below, require_writable, write_below
from hssl_hf.errors import UserError, reading, writing
from hssl_hf.modules.backbone import Backbone, has_norm, timm_arguments
from hssl_hf.publish import model_card, parity
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.publish.kinds import KINDS
from hssl_hf.publish.onnx import save_onnx
from hssl_hf.publish.origin import FACTS
from hssl_hf.publish.parity import ExportError
from hssl_hf.publish.timm_wrapper import save_timm_wrapper
from hssl_hf.publish.to_backbone import to_backbone
from hssl_hf.publish.to_transformers import to_transformers

if TYPE_CHECKING:
    from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel

MARKER = ".hssl_hf_export"


@dataclass(frozen=True)
class CardContext:
    """Content of a model card that does not follow from the weights.

    Args:
        about: `recipe`, `manifest`, `subject`, `license`, `tags`, `release`, `origin`, as far as they are known
            (`model_card.facts`).
        records: results, `Record`s as dictionaries.
        figures: content of PNG files, by their path inside the repository.
        repository, revision: where the model will be published, for the code snippets.
    """

    about: dict = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)
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
    max_shard_size: int | str = "50GB",
) -> Path:
    """Write the base as a stock model and verify that its outputs are identical.

    Args:
        model: the pre-trained model.
        folder: to write to; an earlier export there is replaced.
        kind: "main" for transformers, "timm" for timm (which transformers loads too if timm is installed), "backbone" for
            feature maps in transformers.
        network: "teacher" or "student"; by default `model.default_network`.
        processor: saved with the weights; by default `image_processor` at the model's image size, for one or three channels.
        context: for the model card.
        onnx: also write `onnx/model.onnx`; not for the kind "backbone".
        max_shard_size: of the files of weights, as in `save_pretrained`; timm's own format has one file.
    Returns:
        the folder.
    Raises:
        ExportError: if the exported model does not load cleanly or its outputs differ.
        UserError: if the folder contains anything that no export has written, or the kind "backbone" does not exist for this
            architecture.
    """
    if kind not in KINDS or kind == "training":
        raise UserError(f"kind: expected one of {', '.join(KINDS)} but training, which export_model writes, got {kind!r}")
    network, context = network or model.default_network, context or CardContext()
    base, size = model.get_network(network).base, model.config.image_size
    processor, backbone = processor or _default_processor(model), to_backbone(base, size)
    if kind == "backbone":
        _require_backbone(backbone, model.config.backbone, onnx)
    stock = backbone if kind == "backbone" else to_transformers(base, size) if kind == "main" else None
    with export_draft(Path(folder)) as draft:
        scripts, sizes = [parity.BACKBONE if kind == "backbone" else parity.TRANSFORMERS], [size]
        if stock is not None:
            stock.save_pretrained(draft, max_shard_size=max_shard_size)
            sizes += [size + 2 * base.stride] if stock.config.model_type != "swin" else []
        else:
            _save_timm(base, model.config, processor, draft)
            scripts.append(parity.TIMM)
        processor.save_pretrained(draft)
        if onnx:
            save_onnx(draft, size, base.num_channels, before_norm=stock is not None and not has_norm(base))
            scripts.append(parity.ONNX)
        differences = parity.compare(base, draft, sizes, processor, scripts)
        computed = {"parity": differences, "backbone_class": type(backbone).__name__ if backbone is not None else None}
        computed |= {"onnx": onnx, "tokens": "last_hidden_state" if stock is None and not has_norm(base) else None}
        facts = model_card.facts(model.config, network, without_norm=not has_norm(base), **computed, **context.about)
        _write_card(draft, facts, context, kind)
    return Path(folder)


def export_model(
    model: "StudentTeacherPreTrainedModel",
    folder: Path | str,
    *,
    processor: BitImageProcessor | None = None,
    context: CardContext | None = None,
    max_shard_size: int | str = "50GB",
) -> Path:
    """Write student, teacher and heads to continue training, and verify them by loading; arguments as in `export_backbone`.

    Raises:
        ExportError: if a loaded tensor differs.
        UserError: if the folder contains anything that no export has written.
    """
    context = context or CardContext()
    with export_draft(Path(folder)) as draft:
        model.save_pretrained(draft, max_shard_size=max_shard_size)
        loaded = type(model).from_pretrained(draft).state_dict()
        changed = [name for name, value in model.state_dict().items() if not torch.equal(loaded[name], value.cpu())]
        if changed:
            raise ExportError(
                f"saving and loading the model has changed its weights, so nothing was written: {', '.join(changed[:5])}"
            )
        (processor or _default_processor(model)).save_pretrained(draft)
        without_norm = not has_norm(model.get_network().base)
        facts = model_card.facts(model.config, model.default_network, without_norm=without_norm, **context.about)
        _write_card(draft, facts, context, "training")
    return Path(folder)


def update_card(folder: Path | str, context: CardContext) -> None:
    """Rewrite the model card of an exported backbone with what has become known since the export."""
    folder = Path(folder)
    with reading(folder / FACTS, "export the backbone again"):
        before = dict(yaml.safe_load(read_below(folder, FACTS)))
    facts = {**before, **{name: value for name, value in context.about.items() if value}}
    require_replaceable(folder)  # else the files of others would be listed as written by the export
    _mark(folder, model_card.EVAL_RESULTS, *context.figures)  # before they are written, which may be cut short
    _write_card(folder, facts, context, "main")


def require_replaceable(folder: Path | str) -> None:
    """Raise a UserError if a folder to write to cannot be written, or holds what no export has written, by its `MARKER`."""
    folder = Path(folder)
    require_writable(folder.absolute().parent)
    if not folder.exists():
        return
    written = read_below(folder, MARKER).decode(errors="replace").splitlines() if (folder / MARKER).is_file() else []
    if foreign := [name for name in _files(folder) if name not in written] if folder.is_dir() else ["a file of this name"]:
        rest = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise UserError(
            f"expected an empty folder or an earlier export, got {folder} with {', '.join(foreign[:5])}{rest}, which no "
            "export wrote; choose another folder"
        )


@contextmanager
def export_draft(folder: Path) -> Iterator[Path]:
    """A folder to write to, which replaces an earlier export only when it is complete.

    Raises:
        UserError: if the folder contains anything that no export has written, or the disk is full.
    """
    folder = folder.resolve()
    require_replaceable(folder)
    draft, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("draft", "old"))
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with writing(folder):
            draft.mkdir(parents=True)
            yield draft
            _mark(draft)
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)  # not removed first, since a folder that is removed in part has no marker
            draft.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    """Files of an export but its marker; the Hub's client keeps notes in `.cache`."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return [name for name in names if name != MARKER and not name.startswith(".cache/")]


def _mark(folder: Path, *planned: str) -> None:
    """List the files of an export, and those that will be written, which a later export may replace."""
    write_below(folder, MARKER, "".join(f"{name}\n" for name in [*_files(folder), *planned]))


def _default_processor(model: "StudentTeacherPreTrainedModel") -> BitImageProcessor:
    mean, std = default_normalization(model.config.num_channels)
    return image_processor(model.config.image_size, mean=mean, std=std)


def _require_backbone(backbone: PreTrainedModel | None, architecture: str, onnx: bool) -> None:
    if backbone is None:
        raise UserError(
            f"expected a ViT, ConvNeXt, ResNet or Swin with a backbone class in transformers, got {architecture}; choose the "
            "kind timm, whose feature maps timm.create_model(..., features_only=True) returns"
        )
    if onnx:
        raise UserError("expected the kind main or timm for an ONNX file, got backbone; choose main")


def _save_timm(base: Backbone, config, processor: BitImageProcessor, folder: Path) -> None:
    """At other image sizes than that of training timm interpolates the position embeddings slightly differently from ours."""
    arguments = timm_arguments(config.backbone, config.image_size, config.backbone_kwargs or {})
    if base.is_transformer:
        arguments |= {"dynamic_img_size": True, **({} if has_norm(base) else {"final_norm": False})}
    save_timm_wrapper(base.model, base.timm_state_dict(), config.backbone, arguments, processor, folder)


def _write_card(folder: Path, facts: dict, context: CardContext, kind: str) -> None:
    """Model card, facts, results and figures, next to the weights."""
    location = {"repository": context.repository, "revision": context.revision}
    figures = context.figures if kind == "main" else {}
    write_below(folder, "README.md", model_card.render(facts, context.records, kind=kind, figures=list(figures), **location))
    write_below(folder, FACTS, yaml.safe_dump(facts, sort_keys=False))
    entries = model_card.eval_results(facts, context.records) if kind == "main" else None
    if entries:
        write_below(folder, model_card.EVAL_RESULTS, entries)
    for name, content in figures.items():
        write_below(folder, name, content)
