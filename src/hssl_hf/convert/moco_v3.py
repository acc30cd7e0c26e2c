"""MoCo v3 checkpoints of vision transformers -> `HSSLForPreTraining`: base and momentum encoder, projectors, predictor."""

import torch

from hssl_hf.convert.official_checkpoint import Checkpoint, ConversionError
from hssl_hf.convert.state_dict import ENCODER, base_config, load_strict, require_tensor, strip_prefix
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_hssl import HSSLForPreTraining

LICENSE = "cc-by-nc-4.0"
NUM_HEADS = 12  # of ViT-S as well as of ViT-B
OFFICIAL_TO_OURS = {"predictor.": "student.heads.predictors.base."} | {
    f"{encoder}.{official}": f"{network}.{ours}"
    for encoder, network in (("base_encoder", "student"), ("momentum_encoder", "teacher"))
    for official, ours in {**ENCODER, "head.": "heads.projectors.base."}.items()
}


def from_moco_v3(checkpoint: Checkpoint, num_heads: int | None = None) -> HSSLForPreTraining:
    """A checkpoint with both encoders and the predictor, to continue training.

    Args:
        num_heads: attention heads of the encoder; 12 if None.
    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape, or the encoder is not a vision transformer.
    """
    state = checkpoint.state
    encoder = strip_prefix(state, "base_encoder.")
    if "conv1.weight" in encoder:
        raise ConversionError("expected a vision transformer, got a ResNet, whose projector has two layers instead of three")
    config = HSSLConfig(
        **base_config(encoder, num_heads or NUM_HEADS, "MoCo v3"),
        drop_path_rate=0.0,
        auxiliary=None,
        objective="moco_v3",
        projection_hidden_size=require_tensor(encoder, "head.0.weight", 2, "MoCo v3").shape[0],
        projection_size=require_tensor(encoder, "head.6.weight", 2, "MoCo v3").shape[0],
        contrastive_temperature=checkpoint.number("moco_t", default=0.2),
        sincos_position_embeddings=True,
        freeze_patch_embed=checkpoint.flag("stop_grad_conv1", True),
        license=LICENSE,
    )
    model = HSSLForPreTraining(config)
    load_strict(model, state, OFFICIAL_TO_OURS)
    if not torch.equal(model.student.base.model.pos_embed, model.teacher.base.model.pos_embed):
        raise ConversionError("expected the same fixed pos_embed in base_encoder and momentum_encoder, got different ones")
    model.freeze()
    return model
