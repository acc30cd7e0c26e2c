"""MoCo v3 checkpoints of vision transformers -> `HSSLForPreTraining`: base and momentum encoder, projectors, predictor."""

import torch

from hssl_hf.convert.official_checkpoint import Checkpoint, ConversionError
from hssl_hf.convert.state_dict import base_arguments, load_strict, rename, require_tensor, strip_prefix
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_hssl import HSSLForPreTraining

LICENSE = "cc-by-nc-4.0"
NUM_HEADS = 12  # of ViT-S as well as of ViT-B
ENCODER = {
    **{name: f"base.model.{name}" for name in ("cls_token", "pos_embed", "patch_embed.", "blocks.")},
    "norm.": "base.norm.",
    "head.": "heads.projectors.base.",
}
NETWORKS = {"base_encoder.": "student.", "momentum_encoder.": "teacher."}
PREDICTOR = "student.heads.predictors.base."
OFFICIAL = {PREDICTOR: "predictor."} | {
    new + ours: old + official for old, new in NETWORKS.items() for official, ours in ENCODER.items()
}


def from_moco_v3(checkpoint: Checkpoint, num_heads: int | None = None) -> HSSLForPreTraining:
    """A checkpoint with both encoders and the predictor, ready to continue training.

    Args:
        num_heads: of the encoder; 12 if None.
    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape, or the encoder is no vision transformer.
    """
    state = {name.removeprefix("module."): value for name, value in checkpoint.state.items()}
    encoder = strip_prefix(state, "base_encoder.")
    if "conv1.weight" in encoder:
        raise ConversionError(
            "expected a vision transformer, got a ResNet, whose projector has two layers where ours has three"
        )
    size, kwargs = base_arguments(encoder, num_heads or NUM_HEADS, "MoCo v3")
    hidden = require_tensor(encoder, "head.0.weight", 2, "MoCo v3").shape[0]
    config = HSSLConfig(
        backbone="vit_base_patch16_224",
        backbone_kwargs=kwargs,
        image_size=size,
        drop_path_rate=0.0,
        auxiliary=None,
        objective="moco_v3",
        projection_hidden_size=hidden,
        projection_size=require_tensor(encoder, "head.6.weight", 2, "MoCo v3").shape[0],
        contrastive_temperature=float(checkpoint.arguments.get("moco_t", 0.2)),
        sincos_position_embeddings=True,
        freeze_patch_embed=bool(checkpoint.arguments.get("stop_grad_conv1", True)),
        license=LICENSE,
    )
    model = HSSLForPreTraining(config)
    ours = {_rename(name): name for name in state}
    load_strict(model, {new: state[old] for new, old in ours.items()}, OFFICIAL)
    if not torch.equal(model.student.base.model.pos_embed, model.teacher.base.model.pos_embed):
        raise ConversionError("base_encoder.pos_embed and momentum_encoder.pos_embed differ; expected one fixed table")
    model.freeze()
    return model


def _rename(name: str) -> str:
    if name.startswith("predictor."):
        return PREDICTOR + name.removeprefix("predictor.")
    for old, new in NETWORKS.items():
        if name.startswith(old):
            return new + rename(name.removeprefix(old), ENCODER)
    return name
