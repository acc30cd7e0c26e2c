"""Configuration of `SiameseIMForPreTraining`: what is predicted, of which view, and how the loss is normalised."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SiameseIMConfig(PreTrainedConfig):
    """Siamese image modeling, and the methods between it and MAE.

    The defaults are SiameseIM. MAE is `target="pixel", views="same", norm="layer", projector_depth=0, decoder_depth=8,
    decoder_width=512, final_norm=True, train_patch_embed=True`; MoCo v3 with a mask, by its features and views, is
    `level="global", loss_normalization="moco"`.

    Args:
        backbone: name of a timm vision transformer with a class token.
        backbone_kwargs: further arguments of that model, such as `embed_dim`, `patch_size` or `num_heads`.
        image_size: side of the views in pixels.
        drop_path: stochastic depth at the last block of the student's base, rising linearly from 0.
        target: what is predicted: the teacher's features, or pixels (then there is no teacher).
        views: "different": all patches of a second view, from where they lie relative to the first. "same": the hidden patches
            of the one view.
        level: "dense", a prediction for every patch asked about, or "global", one for the class token.
        norm: of the blocks of projector and decoder: batch (over batch and tokens of all processes) or layer.
        loss_normalization: of features: mae (layer norm of the target) or moco (prediction and target of one length).
        negative_weight: lambda of the UniGrad loss.
        student_norm: also normalise the prediction by layer norm without scale and shift.
        normalize_pixels: mean 0 and variance 1 within every patch of pixels.
        decoder_width: channels of projector and decoder; None for those of the base.
        decoder_heads: their attention heads.
        projector_depth, decoder_depth: their blocks.
        final_norm: base and decoder end with a layer norm, as in MAE.
        train_patch_embed: learn the patch embedding; otherwise it stays random.
        license: of the weights, where they come from somebody else; written into the card of an export.
    Raises:
        ValueError: for combinations that do not exist.
    Source: SiameseIM, section 3, Tables 3 and 6; released code for the defaults.
    Differs: the paper has 12 heads in projector and decoder, the released code 16. The code freezes the random patch embedding
        and ends neither encoder nor decoder with a norm; the paper says nothing of either.
    """

    model_type = "siamese_im"

    backbone: str = "vit_base_patch16_224"
    backbone_kwargs: dict | None = None
    image_size: int = 224
    drop_path: float = 0.0
    target: Literal["feature", "pixel"] = "feature"
    views: Literal["different", "same"] = "different"
    level: Literal["dense", "global"] = "dense"
    norm: Literal["batch", "layer"] = "batch"
    loss_normalization: Literal["mae", "moco"] = "mae"
    negative_weight: float = 0.02
    student_norm: bool = False
    normalize_pixels: bool = True
    decoder_width: int | None = None
    decoder_heads: int = 16
    projector_depth: int = 2
    decoder_depth: int = 4
    final_norm: bool = False
    train_patch_embed: bool = False
    license: str | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.target == "pixel" and self.level == "global":
            raise ValueError("pixels are predicted patch by patch; use level='dense' with target='pixel'")
        if self.decoder_depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {self.decoder_depth}")

    @property
    def fixed_positions(self) -> bool:
        """Positions are sines and cosines in every arm."""
        return True
