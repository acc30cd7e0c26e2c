"""Configuration of `SiameseIMForPreTraining`: what is predicted, of which view, and how the loss is normalized."""

from typing import Annotated, Literal

from hssl_hf.fields import Depth, FieldError, Range, Width
from hssl_hf.models.configuration_base import PreTrainingConfig, check_decoder
from hssl_hf.publish.citations import CITATIONS, SIAMESE_IM


class SiameseIMConfig(PreTrainingConfig):
    """Siamese image modeling, and the methods between it and MAE.

    The defaults are SiameseIM. MAE is `target="pixel", views="same", decoder_norm="layer", projector_depth=0,
    decoder_num_hidden_layers=8, decoder_hidden_size=512, final_norm=True, freeze_patch_embed=False`.

    Args:
        (those of `PreTrainingConfig`; the backbone is a vision transformer with a class token)
        target: what is predicted: the teacher's features, or pixels (then there is no teacher).
        views: "different": all patches of a second view, from their positions relative to the first. "same": the masked patches
            of the one view.
        level: "dense", a prediction for every target patch, or "global", one for the class token.
        decoder_norm: of the blocks of projector and decoder: batch (over batch and tokens of all processes) or layer.
        loss_normalization: of features: layer_norm (of the target), or batch_norm_l2 (of prediction and target: batch norm
            without scale and shift, then length 1). They are MAE-like and MoCo-like in Table 3.
        negative_weight: lambda of the UniGrad loss.
        normalize_prediction: also normalize the prediction by layer norm without scale and shift.
        norm_pix_loss: mean 0 and variance 1 within every patch of pixels.
        decoder_hidden_size: channels of projector and decoder; None for those of the base.
        decoder_num_attention_heads: their attention heads.
        projector_depth, decoder_num_hidden_layers: their blocks.
        final_norm: base and decoder end with a layer norm, as in MAE.
        freeze_patch_embed: leave the patch embedding at its random initial values.
    Raises:
        FieldError: for combinations that do not exist.
    Source: SiameseIM, section 3, Tables 3 and 4; released code for the defaults.
    Differs: the paper has 12 heads in projector and decoder, the released code 16. The code freezes the random patch embedding
        and ends neither encoder nor decoder with a norm; the paper mentions neither. batch_norm_l2 is not in the released code:
        its statistics are over the batch and the predicted tokens of all processes, and lambda is .02 as elsewhere, though at
        length 1 the negative term is D times smaller beside the positive one than at squared length D.
    """

    model_type = "siamese_im"

    backbone: str = "vit_base_patch16_224"
    target: Literal["feature", "pixel"] = "feature"
    views: Literal["different", "same"] = "different"
    level: Literal["dense", "global"] = "dense"
    decoder_norm: Literal["batch", "layer"] = "batch"
    loss_normalization: Literal["layer_norm", "batch_norm_l2"] = "layer_norm"
    negative_weight: Annotated[float, Range(0, 1000)] = 0.02
    normalize_prediction: bool = False
    norm_pix_loss: bool = True
    decoder_hidden_size: Width | None = None
    decoder_num_attention_heads: Width = 16
    projector_depth: Annotated[int, Range(0, 256)] = 2
    decoder_num_hidden_layers: Depth = 4
    final_norm: bool = False
    freeze_patch_embed: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.target == "pixel" and self.level == "global":
            raise FieldError(
                "level: expected 'dense' with target='pixel', since pixels are predicted patch by patch, got 'global'"
            )
        if self.decoder_hidden_size is not None:
            check_decoder(self.decoder_hidden_size, self.decoder_num_attention_heads)

    @property
    def sincos_position_embeddings(self) -> bool:
        """Positions are sines and cosines in every variant."""
        return True

    @property
    def features(self) -> str:
        """The output of the encoder that it is trained for, as in the configuration of an export without a final norm."""
        return "last_hidden_state" if self.final_norm else "hidden_states"

    @property
    def citation(self) -> str:
        return CITATIONS.get(self.describe()[0], SIAMESE_IM)

    def describe(self) -> tuple[str, str]:
        variant = self.target, self.views, self.level
        if variant[:2] == ("pixel", "same") and self.final_norm and not self.projector_depth:
            return "MAE", "masked autoencoding (MAE, arXiv 2111.06377)"
        if variant == ("feature", "different", "dense"):
            return "SiameseIM", "siamese image modeling (SiameseIM, arXiv 2206.01204)"
        values = "target: {}, views: {}, level: {}".format(*variant)
        return "a variant of SiameseIM", f"a variant of siamese image modeling (SiameseIM, arXiv 2206.01204; {values})"

    def described_in(self) -> list[str]:
        models = ["models/configuration_siamese_im", "models/modeling_siamese_im"]
        return [*models, "objectives/unigrad", "modules/position_embeddings", "data/masking", "engine/optim"]
