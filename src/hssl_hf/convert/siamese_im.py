"""SiameseIM checkpoints -> our classes, and back. Tensors that are missing, unexpected or of another shape are errors.

Pre-trained checkpoints become `SiameseIMForPreTraining`; fine-tuned ones, with a classifier on the norm of the mean patch
token, become timm models with that pooling. The names of tensors are those of the released code.
"""

import re

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hssl_hf.convert.official_checkpoint import Checkpoint, ConversionError
from hssl_hf.convert.state_dict import BASE, BASE_NAMES, base_config, check_sincos, count, load_strict, rename, require_tensor
from hssl_hf.models.configuration_siamese_im import SiameseIMConfig
from hssl_hf.models.modeling_siamese_im import SiameseIMForPreTraining
from hssl_hf.modules.backbone import Backbone

LICENSE = "cc-by-nc-4.0"
STUDENT = {
    **BASE_NAMES,
    "decoder_embed.": "projector.embed.",
    "projector_decoder_blocks.": "projector.blocks.",
    "predictor_decoder_blocks.": "decoder.blocks.",
    "decoder_pred.": "decoder.prediction.",
    "decoder_pos_mlp.": "decoder.position_projection.",
    "mask_token": "decoder.mask_token",
}
TEACHER = ("cls_token", "patch_embed.", "blocks.", "decoder_embed.", "projector_decoder_blocks.")
OFFICIAL_TO_OURS = {name: f"student.{ours}" for name, ours in STUDENT.items()}
OFFICIAL_TO_OURS |= {f"mm_{name}": f"teacher.{STUDENT[name]}" for name in TEACHER}
NORMS_AND_HEAD = ("student_norm.", "fc_norm.", "head.")
UNUSED = {"decoder_pos_embed", "mm_mask_token"}  # a fixed embedding, and a copy that the released code does not use


def from_siamese_im(checkpoint: Checkpoint, **overrides) -> SiameseIMForPreTraining:
    """Student and teacher of a pre-trained checkpoint, to continue training.

    Args:
        overrides: values of `SiameseIMConfig` that do not follow from shapes: `decoder_num_attention_heads` (16 in the release)
            and, in `backbone_kwargs`, `num_heads` (by default 16 at a width of 1280, else one per 64 channels).
    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape.
    """
    state = dict(checkpoint.state)
    config = _pretraining_config(state, checkpoint, overrides)
    model = SiameseIMForPreTraining(config)
    unused = {name: state.pop(name) for name in UNUSED if name in state}
    if config.normalize_prediction:  # by a norm with a fixed scale of 1 and shift of 0; our model has no weights for it
        scale, shift = state.pop("student_norm.weight"), state.pop("student_norm.bias", torch.zeros(1))
        if (scale != 1).any() or (shift != 0).any():
            raise ConversionError("expected student_norm with scale 1 and shift 0, got other values")
    state["teacher.base.model.pos_embed"] = state["pos_embed"]
    load_strict(model, state, OFFICIAL_TO_OURS, UNUSED - unused.keys())
    check_sincos(unused["decoder_pos_embed"], model.student.decoder.positions, "decoder_pos_embed")
    return model


def to_siamese_im(model: SiameseIMForPreTraining) -> dict[str, Tensor]:
    """The inverse of `from_siamese_im`: weights under official names.

    The teacher's mask token, which the released code does not use, is a copy of the student's.

    Raises:
        ConversionError: for variants that the released code does not support; `base_to_siamese_im` converts their base.
    """
    config = model.config
    if (config.target, config.views, config.level, config.final_norm) != ("feature", "different", "dense", False):
        raise ConversionError("the released code does not support this variant; convert its base only, with base_to_siamese_im")
    official = {ours: name for name, ours in OFFICIAL_TO_OURS.items()}
    state = {rename(name, official): value for name, value in model.state_dict().items()}
    del state["teacher.base.model.pos_embed"]
    decoder = model.student.decoder
    state["decoder_pos_embed"] = torch.cat([torch.zeros_like(decoder.positions[:1]), decoder.positions])[None]
    state["mm_mask_token"] = decoder.mask_token.detach()
    if config.normalize_prediction:
        state |= {"student_norm.weight": torch.ones(decoder.width), "student_norm.bias": torch.zeros(decoder.width)}
    return {name: value.detach().clone() for name, value in state.items()}


def base_from_siamese_im(checkpoint: Checkpoint, num_heads: int | None = None) -> Backbone:
    """The base of a pre-trained or fine-tuned checkpoint, without a final norm.

    Raises:
        ConversionError: if one of its tensors is missing or of another shape, or the file contains unknown tensors.
    """
    config = base_config(checkpoint.state, num_heads)
    base = Backbone(config["backbone"], config["image_size"], config["backbone_kwargs"])
    base.norm = nn.Identity()
    others = (*OFFICIAL_TO_OURS, *UNUSED, *NORMS_AND_HEAD)
    weights = {name: v for name, v in checkpoint.state.items() if name.startswith(BASE) or not name.startswith(others)}
    load_strict(base.model, weights, table={})
    return base.eval()


def base_to_siamese_im(base: Backbone) -> dict[str, Tensor]:
    """Weights of the base under official names, for example to fine-tune it with the released code.

    Raises:
        ConversionError: if the released code has no counterpart of a weight, such as a final norm.
    """
    unsupported = [name for name in base.timm_state_dict() if not name.startswith(BASE)]
    if unsupported or not base.is_transformer:
        raise ConversionError(f"the released code has no counterpart of {', '.join(unsupported) or 'this architecture'}")
    return {name: value.detach().clone() for name, value in base.timm_state_dict().items()}


def classifier_from_siamese_im(checkpoint: Checkpoint, num_heads: int | None = None) -> VisionTransformer:
    """A fine-tuned checkpoint as a timm model: mean of the patch tokens, norm, linear classifier.

    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape.
    """
    state = checkpoint.state
    config, num_classes = base_config(state, num_heads), len(require_tensor(state, "head.weight", 2))
    size = {"img_size": config["image_size"]}
    model = timm.create_model(
        config["backbone"], num_classes=num_classes, global_pool="avg", **size, **config["backbone_kwargs"]
    )
    load_strict(model, state, table={})
    return model.eval()


def _pretraining_config(state: dict[str, Tensor], checkpoint: Checkpoint, overrides: dict) -> SiameseIMConfig:
    base = base_config(state, (overrides.pop("backbone_kwargs", None) or {}).get("num_heads"))
    hidden_size = require_tensor(state, "decoder_embed.weight", 2).shape[0]
    batch_norm = {".bn." in name for name in state if re.match(r"(projector|predictor)_decoder_blocks\.\d+\.norm", name)}
    if len(batch_norm) != 1:
        raise ConversionError("expected batch norm or layer norm in all blocks of projector and decoder, got both or none")
    values = {
        **base,
        "decoder_norm": "batch" if batch_norm.pop() else "layer",
        "decoder_hidden_size": None if hidden_size == base["backbone_kwargs"]["embed_dim"] else hidden_size,
        "projector_depth": count(state, "projector_decoder_blocks"),
        "decoder_num_hidden_layers": count(state, "predictor_decoder_blocks"),
        "normalize_prediction": "student_norm.weight" in state,
        "negative_weight": checkpoint.number("neg_weight", default=0.02),
        "freeze_patch_embed": not checkpoint.flag("train_patch_embed", False),
        "license": LICENSE,
    }
    return SiameseIMConfig(**{**values, **overrides})
