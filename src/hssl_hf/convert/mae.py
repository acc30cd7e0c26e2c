"""MAE checkpoints -> `HSSLMAEForPreTraining` without auxiliary head: the encoder, and the decoder if the file contains it."""

from torch import Tensor

from hssl_hf.convert.official_checkpoint import Checkpoint, ConversionError
from hssl_hf.convert.state_dict import ENCODER, base_config, check_sincos, count, load_base, load_strict, rename, require_tensor
from hssl_hf.models.configuration_mae import HSSLMAEConfig
from hssl_hf.models.modeling_mae import HSSLMAEForPreTraining

LICENSE = "cc-by-nc-4.0"
DECODER = {
    "decoder_embed.": "pixels.projector.embed.",
    "decoder_blocks.": "pixels.decoder.blocks.",
    "decoder_norm.": "pixels.decoder.norm.",
    "decoder_pred.": "pixels.decoder.prediction.",
    "mask_token": "pixels.decoder.mask_token",
}


def from_mae(
    checkpoint: Checkpoint, num_heads: int | None = None, decoder_num_attention_heads: int = 16
) -> HSSLMAEForPreTraining:
    """A pre-trained checkpoint with its decoder, to continue training.

    Args:
        num_heads: attention heads of the encoder; None for 16 at a width of 1280, else one per 64 channels.
        decoder_num_attention_heads: those of the decoder.
    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape. The released files contain the encoder only.
    """
    state = checkpoint.state
    if "decoder_embed.weight" not in state:
        raise ConversionError("this file contains MAE's encoder only, without decoder; remove --for-pretraining")
    config = _config(
        state,
        num_heads,
        decoder_hidden_size=require_tensor(state, "decoder_embed.weight", 2, "MAE").shape[0],
        decoder_num_hidden_layers=count(state, "decoder_blocks"),
        decoder_num_attention_heads=decoder_num_attention_heads,
        norm_pix_loss=checkpoint.flag("norm_pix_loss", True),
    )
    model = HSSLMAEForPreTraining(config)
    positions = require_tensor(state, "decoder_pos_embed", 3, "MAE")
    weights = {name: value for name, value in state.items() if name != "decoder_pos_embed"}
    load_strict(model.student, weights, {**ENCODER, **DECODER})
    check_sincos(positions, model.student.pixels.decoder.positions, "decoder_pos_embed")
    model.freeze()
    return model


def base_from_mae(checkpoint: Checkpoint, num_heads: int | None = None) -> HSSLMAEForPreTraining:
    """The encoder of a checkpoint, with a newly initialized decoder.

    Raises:
        ConversionError: if a tensor of the encoder is missing or of another shape, or the file contains unknown tensors.
    """
    model = HSSLMAEForPreTraining(_config(checkpoint.state, num_heads))
    decoder = {name for name in checkpoint.state if name == "decoder_pos_embed" or rename(name, DECODER) != name}
    load_base(model.student.base, {name: value for name, value in checkpoint.state.items() if name not in decoder})
    return model


def _config(state: dict[str, Tensor], num_heads: int | None, **decoder) -> HSSLMAEConfig:
    return HSSLMAEConfig(**base_config(state, num_heads, "MAE"), auxiliary=None, license=LICENSE, **decoder)
