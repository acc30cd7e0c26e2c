"""Official checkpoints -> our classes, and back. Nothing that is missing, unexpected or of another shape passes.

Pre-trained SiameseIM checkpoints become `SiameseIMForPreTraining`; fine-tuned ones, whose classifier stands on the norm of the
mean of the patches, become the timm model of that form. The key layouts are those of the released code.
"""

import argparse
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from hssl_hf import card
from hssl_hf.backbone import Backbone
from hssl_hf.configuration_siamese_im import SiameseIMConfig
from hssl_hf.export import ExportError, export_backbone, export_model, refuse_foreign
from hssl_hf.modeling_siamese_im import SiameseIMForPreTraining
from hssl_hf.stock import image_processor, save_timm_wrapper

LICENSE = "cc-by-nc-4.0"
BASE = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
STUDENT = {
    **{name: f"base.model.{name}" for name in BASE},
    "decoder_embed.": "projector.embed.",
    "projector_decoder_blocks.": "projector.blocks.",
    "predictor_decoder_blocks.": "decoder.blocks.",
    "decoder_pred.": "decoder.prediction.",
    "decoder_pos_mlp.": "decoder.position_projection.",
    "mask_token": "decoder.mask_token",
}
TEACHER = ("cls_token", "patch_embed.", "blocks.", "decoder_embed.", "projector_decoder_blocks.")
OURS = {name: f"student.{ours}" for name, ours in STUDENT.items()} | {f"mm_{n}": f"teacher.{STUDENT[n]}" for n in TEACHER}
OFFICIAL = {ours: name for name, ours in OURS.items()}
BEHIND = ("student_norm.", "fc_norm.", "head.")
FREE = ("decoder_pos_embed", "mm_mask_token")  # a fixed table, and a copy that nothing reads


class ConversionError(ValueError):
    """A checkpoint that is not what it should be; the message says what was expected and what came."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the arguments of the training where the file has them."""

    state: dict[str, Tensor]
    arguments: dict = field(default_factory=dict)

    @property
    def fine_tuned(self) -> bool:
        return "head.weight" in self.state


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a `.pth` or `.safetensors` file without running anything that is in it.

    Of the classes that a pickle may name, only plain tensors and containers and `argparse.Namespace` (a bag of values, in which
    official checkpoints keep their arguments) are made.

    Raises:
        ConversionError: if the file cannot be read like that, or holds no tensors.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return Checkpoint(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ConversionError(
            f"{path} is no checkpoint that can be read safely: {error}\nExpected a file of tensors, as torch.save or "
            "safetensors write it. Other objects in it are never loaded."
        ) from error
    content = content if isinstance(content, dict) else {}
    state = content.get("model", content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConversionError(f"{path} holds no weights: expected tensors by name, by themselves or under the key 'model'")
    arguments = content.get("args")
    return Checkpoint(state, vars(arguments) if isinstance(arguments, argparse.Namespace) else {})


def from_siamese_im(checkpoint: Checkpoint, **changes) -> SiameseIMForPreTraining:
    """A pre-trained checkpoint, student and teacher, ready to go on.

    Args:
        changes: values of `SiameseIMConfig` that shapes do not tell: `decoder_heads` (16 in the release) and, in
            `backbone_kwargs`, `num_heads` (by default 16 for a width of 1280, else one for every 64 channels).
    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape.
    """
    state = dict(checkpoint.state)
    config = _pretraining_config(state, checkpoint.arguments, changes)
    model = SiameseIMForPreTraining(config)
    free = {name: state.pop(name, None) for name in FREE}
    _check_norm(state, config)
    renamed = {_rename(name, OURS): value for name, value in state.items()}
    renamed["teacher.base.model.pos_embed"] = renamed.get("student.base.model.pos_embed")
    _load(model, renamed, {name for name, value in free.items() if value is None})
    positions = torch.cat([torch.zeros(1, model.student.decoder.width), model.student.decoder.positions])
    if free["decoder_pos_embed"].shape[1:] != positions.shape or (free["decoder_pos_embed"][0] - positions).abs().max() > 1e-4:
        raise ConversionError("decoder_pos_embed is not the fixed table of sines and cosines that it should be")
    return model


def to_siamese_im(model: SiameseIMForPreTraining) -> dict[str, Tensor]:
    """The inverse of `from_siamese_im`, under official names.

    The teacher's mask token, which nothing reads, is the student's.

    Raises:
        ConversionError: for arms that the released code does not have; `base_to_siamese_im` writes their base.
    """
    config = model.config
    if (config.target, config.views, config.level, config.final_norm) != ("feature", "different", "dense", False):
        raise ConversionError("the released code has no checkpoints of this arm; base_to_siamese_im writes its base alone")
    ours = {name: value for name, value in model.state_dict().items() if name != "teacher.base.model.pos_embed"}
    state = {_rename(name, OFFICIAL): value for name, value in ours.items()}
    decoder = model.student.decoder
    state["decoder_pos_embed"] = torch.cat([torch.zeros_like(decoder.positions[:1]), decoder.positions])[None]
    state["mm_mask_token"] = decoder.mask_token.detach()
    if config.student_norm:
        state |= {"student_norm.weight": torch.ones(decoder.width), "student_norm.bias": torch.zeros(decoder.width)}
    return {name: value.detach().clone() for name, value in state.items()}


def base_from_siamese_im(checkpoint: Checkpoint, num_heads: int | None = None) -> Backbone:
    """The base alone, of a pre-trained or a fine-tuned checkpoint, without a final norm.

    Raises:
        ConversionError: if one of its tensors is missing or of another shape, or anything in the file is unknown.
    """
    size, kwargs = _base_arguments(checkpoint.state, num_heads)
    base = Backbone("vit_base_patch16_224", size, kwargs)
    base.norm = nn.Identity()
    behind = (*OURS, *FREE, *BEHIND)
    known = {name for name in checkpoint.state if name.startswith(behind) and not name.startswith(BASE)}
    _load(base.model, {name: value for name, value in checkpoint.state.items() if name not in known}, set())
    return base.eval()


def base_to_siamese_im(base: Backbone) -> dict[str, Tensor]:
    """The base under official names, for example to fine-tune it with the released code.

    Raises:
        ConversionError: if it has parts for which the released code has no place, such as a final norm.
    """
    foreign = [name for name in base.timm_state_dict() if not name.startswith(BASE)]
    if foreign or not base.is_transformer:
        raise ConversionError(f"the released code has no place for {', '.join(foreign) or 'this architecture'}")
    return {name: value.detach().clone() for name, value in base.timm_state_dict().items()}


def classifier_from_siamese_im(checkpoint: Checkpoint, num_heads: int | None = None) -> VisionTransformer:
    """A fine-tuned checkpoint: mean of the patches, norm, linear classifier.

    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape.
    """
    state = checkpoint.state
    size, kwargs = _base_arguments(state, num_heads)
    model = timm.create_model(
        "vit_base_patch16_224", img_size=size, num_classes=len(_need(state, "head.weight", axes=2)), global_pool="avg", **kwargs
    )
    _load(model, state, set())
    return model.eval()


def convert_checkpoint(path: Path | str, folder: Path | str, *, whole: bool = False, **changes) -> Path:
    """Write an official SiameseIM checkpoint as a folder that transformers loads, with a card that names its licence.

    Args:
        path: the checkpoint.
        folder: where to; a stock backbone, or for a fine-tuned checkpoint a stock image classifier.
        whole: write `SiameseIMForPreTraining` instead, with teacher, projector and decoder.
        changes: as in `from_siamese_im`.
    Returns:
        the folder.
    Raises:
        ConversionError: if the checkpoint is not what it should be.
    """
    checkpoint, folder = read_checkpoint(path), Path(folder)
    refuse_foreign(folder)
    if checkpoint.fine_tuned:
        if whole:
            raise ConversionError(f"{path} is fine-tuned: it has a classifier, but no teacher, projector and decoder")
        _write_classifier(checkpoint, folder, (changes.get("backbone_kwargs") or {}).get("num_heads"))
        return folder
    model = from_siamese_im(checkpoint, **changes)
    return export_model(model, folder) if whole else export_backbone(model, folder)


def _write_classifier(checkpoint: Checkpoint, folder: Path, num_heads: int | None) -> None:
    """Write a fine-tuned checkpoint as a stock classifier and compare what transformers loads with what was converted."""
    model = classifier_from_siamese_im(checkpoint, num_heads)
    size, kwargs = _base_arguments(checkpoint.state, num_heads)
    processor = image_processor(size)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {"img_size": size, "global_pool": "avg", **kwargs}
    save_timm_wrapper(model, model.state_dict(), "vit_base_patch16_224", arguments, processor, folder)
    processor.save_pretrained(folder)
    facts = card.facts(SiameseIMConfig(image_size=size, license=LICENSE), "classifier", without_norm=False)
    (folder / "README.md").write_text(card.render(facts, kind="classifier"))
    loaded, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (loaded.eval()(pixels).logits - model(pixels)).abs().max()
    if any(report.values()) or not difference <= 1e-4:
        raise ExportError(f"the classifier in {folder} differs from the checkpoint by {difference:.1e}; loading said {report}")


def _pretraining_config(state: dict[str, Tensor], arguments: dict, changes: dict) -> SiameseIMConfig:
    size, kwargs = _base_arguments(state, (changes.pop("backbone_kwargs", None) or {}).get("num_heads"))
    inner = _need(state, "decoder_embed.weight", axes=2).shape[0]
    normed = {".bn." in name for name in state if re.match(r"(projector|predictor)_decoder_blocks\.\d+\.norm", name)}
    if len(normed) != 1:
        raise ConversionError(
            "expected batch norm in all blocks of projector and decoder, or layer norm in all; got neither alone"
        )
    values = {
        "backbone": "vit_base_patch16_224",
        "backbone_kwargs": kwargs,
        "image_size": size,
        "norm": "batch" if normed.pop() else "layer",
        "decoder_width": None if inner == kwargs["embed_dim"] else inner,
        "projector_depth": _count(state, "projector_decoder_blocks"),
        "decoder_depth": _count(state, "predictor_decoder_blocks"),
        "student_norm": "student_norm.weight" in state,
        "negative_weight": float(arguments.get("neg_weight", 0.02)),
        "train_patch_embed": bool(arguments.get("train_patch_embed", False)),
        "license": LICENSE,
    }
    return SiameseIMConfig(**{**values, **changes})


def _base_arguments(state: dict[str, Tensor], num_heads: int | None) -> tuple[int, dict]:
    """Image size, and what makes `vit_base_patch16_224` a transformer of the state's shape."""
    width, _, patch, _ = _need(state, "patch_embed.proj.weight", axes=4).shape
    side = round((_need(state, "pos_embed", axes=3).shape[1] - 1) ** 0.5)
    heads = num_heads or max(1, 16 if width == 1280 else width // 64)
    if width % heads:
        raise ConversionError(f"{heads} attention heads do not divide the width {width} of this checkpoint")
    depth = _count(state, "blocks")
    return side * patch, {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}


def _need(state: dict[str, Tensor], name: str, axes: int) -> Tensor:
    if name not in state:
        raise ConversionError(f"this is no SiameseIM checkpoint: {name!r} is missing")
    if state[name].ndim != axes or 0 in state[name].shape:
        raise ConversionError(f"{name}: expected {axes} axes, none of them empty, got {tuple(state[name].shape)}")
    return state[name]


def _count(state: dict[str, Tensor], blocks: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


def _check_norm(state: dict[str, Tensor], config: SiameseIMConfig) -> None:
    """A norm of the predictions has scale 1 and shift 0, which are not learned; ours has none."""
    if config.student_norm:
        scale, shift = state.pop("student_norm.weight"), state.pop("student_norm.bias", torch.zeros(1))
        if (scale != 1).any() or (shift != 0).any():
            raise ConversionError("student_norm should have scale 1 and shift 0")


def _rename(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return name


def _load(model: nn.Module, state: dict[str, Tensor], missing: set[str]) -> None:
    expected = model.state_dict()
    problems = [f"missing: {_rename(name, OFFICIAL)}" for name in sorted({*expected.keys() - state.keys(), *missing})]
    problems += [f"unexpected: {_rename(name, OFFICIAL)}" for name in sorted(state.keys() - expected.keys())]
    for name in sorted(expected.keys() & state.keys()):
        wanted, found = tuple(expected[name].shape), tuple(state[name].shape)
        if wanted != found:
            problems.append(f"{_rename(name, OFFICIAL)}: expected {wanted}, got {found}")
    if problems:
        raise ConversionError("the checkpoint does not fit:\n  " + "\n  ".join(problems[:20]))
    model.load_state_dict(state)
