"""SiameseIM checkpoints -> our classes, and back. Nothing that is missing, unexpected or of another shape passes.

Pre-trained checkpoints become `SiameseIMForPreTraining`; fine-tuned ones, whose classifier stands on the norm of the mean of
the patches, become the timm model of that form. The key layouts are those of the released code.
"""

import re

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hssl_hf.convert.official_checkpoint import Checkpoint, ConversionError
from hssl_hf.convert.state_dict import (
    base_arguments,
    count,
    load_strict,
    rename,
    require_sincos_position_embedding,
    require_tensor,
)
from hssl_hf.models.configuration_siamese_im import SiameseIMConfig
from hssl_hf.models.modeling_siamese_im import SiameseIMForPreTraining
from hssl_hf.modules.backbone import Backbone

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


def from_siamese_im(checkpoint: Checkpoint, **changes) -> SiameseIMForPreTraining:
    """A pre-trained checkpoint, student and teacher, ready to continue training.

    Args:
        changes: values of `SiameseIMConfig` that shapes do not determine: `decoder_num_attention_heads` (16 in the release) and
            `num_heads` in `backbone_kwargs` (by default 16 for a width of 1280, else one for every 64 channels).
    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape.
    """
    state = dict(checkpoint.state)
    config = _pretraining_config(state, checkpoint.arguments, changes)
    model = SiameseIMForPreTraining(config)
    free = {name: state.pop(name, None) for name in FREE}
    _check_norm(state, config)
    renamed = {rename(name, OURS): value for name, value in state.items()}
    renamed["teacher.base.model.pos_embed"] = renamed.get("student.base.model.pos_embed")
    load_strict(model, renamed, OFFICIAL, {name for name, value in free.items() if value is None})
    require_sincos_position_embedding(free["decoder_pos_embed"], model.student.decoder.positions, "decoder_pos_embed")
    return model


def to_siamese_im(model: SiameseIMForPreTraining) -> dict[str, Tensor]:
    """The inverse of `from_siamese_im`, under official names.

    The teacher's mask token, which nothing reads, is the student's.

    Raises:
        ConversionError: for variants that the released code does not have; `base_to_siamese_im` writes their base.
    """
    config = model.config
    if (config.target, config.views, config.level, config.final_norm) != ("feature", "different", "dense", False):
        raise ConversionError("the released code has no checkpoints of this variant; base_to_siamese_im writes its base alone")
    ours = {name: value for name, value in model.state_dict().items() if name != "teacher.base.model.pos_embed"}
    state = {rename(name, OFFICIAL): value for name, value in ours.items()}
    decoder = model.student.decoder
    state["decoder_pos_embed"] = torch.cat([torch.zeros_like(decoder.positions[:1]), decoder.positions])[None]
    state["mm_mask_token"] = decoder.mask_token.detach()
    if config.normalize_prediction:
        state |= {"student_norm.weight": torch.ones(decoder.width), "student_norm.bias": torch.zeros(decoder.width)}
    return {name: value.detach().clone() for name, value in state.items()}


def base_from_siamese_im(checkpoint: Checkpoint, num_heads: int | None = None) -> Backbone:
    """The base alone, of a pre-trained or a fine-tuned checkpoint, without a final norm.

    Raises:
        ConversionError: if one of its tensors is missing or of another shape, or anything in the file is unknown.
    """
    size, kwargs = base_arguments(checkpoint.state, num_heads)
    base = Backbone("vit_base_patch16_224", size, kwargs)
    base.norm = nn.Identity()
    behind = (*OURS, *FREE, *BEHIND)
    known = {name for name in checkpoint.state if name.startswith(behind) and not name.startswith(BASE)}
    load_strict(base.model, {name: value for name, value in checkpoint.state.items() if name not in known}, OFFICIAL)
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
    size, kwargs = base_arguments(state, num_heads)
    model = timm.create_model(
        "vit_base_patch16_224",
        img_size=size,
        num_classes=len(require_tensor(state, "head.weight", 2)),
        global_pool="avg",
        **kwargs,
    )
    load_strict(model, state, OFFICIAL)
    return model.eval()


def _pretraining_config(state: dict[str, Tensor], arguments: dict, changes: dict) -> SiameseIMConfig:
    size, kwargs = base_arguments(state, (changes.pop("backbone_kwargs", None) or {}).get("num_heads"))
    inner = require_tensor(state, "decoder_embed.weight", 2).shape[0]
    normed = {".bn." in name for name in state if re.match(r"(projector|predictor)_decoder_blocks\.\d+\.norm", name)}
    if len(normed) != 1:
        raise ConversionError(
            "expected batch norm in all blocks of projector and decoder, or layer norm in all; got neither alone"
        )
    values = {
        "backbone": "vit_base_patch16_224",
        "backbone_kwargs": kwargs,
        "image_size": size,
        "decoder_norm": "batch" if normed.pop() else "layer",
        "decoder_hidden_size": None if inner == kwargs["embed_dim"] else inner,
        "projector_depth": count(state, "projector_decoder_blocks"),
        "decoder_num_hidden_layers": count(state, "predictor_decoder_blocks"),
        "normalize_prediction": "student_norm.weight" in state,
        "negative_weight": float(arguments.get("neg_weight", 0.02)),
        "freeze_patch_embed": not arguments.get("train_patch_embed", False),
        "license": LICENSE,
    }
    return SiameseIMConfig(**{**values, **changes})


def _check_norm(state: dict[str, Tensor], config: SiameseIMConfig) -> None:
    """A norm of the predictions has scale 1 and shift 0, which are not learned; ours has none."""
    if config.normalize_prediction:
        scale, shift = state.pop("student_norm.weight"), state.pop("student_norm.bias", torch.zeros(1))
        if (scale != 1).any() or (shift != 0).any():
            raise ConversionError("student_norm should have scale 1 and shift 0")
