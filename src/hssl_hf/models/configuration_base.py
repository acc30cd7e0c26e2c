"""What the configurations of all methods share: everything that the rest of the package knows of a method by its name."""

import logging
from dataclasses import fields
from typing import Annotated, ClassVar

from transformers import PreTrainedConfig

from hssl_hf.errors import UserError
from hssl_hf.fields import Declared, FieldError, Pixels, Range, check

logger = logging.getLogger(__name__)
NOT_FIELDS = {  # further arguments of every transformers configuration
    "attn_implementation", "experts_implementation", "model_type", "name_or_path", "num_labels", "output_attentions",
    "per_layer_config", "torch_dtype",
}  # fmt: skip


class PreTrainingConfig(Declared, PreTrainedConfig):
    """Configuration of a method of self-supervised pre-training.

    A subclass sets `model_type` and `citation`, declares its fields as `hssl_hf.fields` describes, and summarizes its values in
    `describe` and `described_in`. Recipes, cards, reports and the Auto classes read a method from here. Values are checked when
    they are set, and what several have to do with each other when a configuration is made.

    Args:
        backbone: name of a timm model.
        backbone_kwargs: further arguments of that model, such as `embed_dim`, `patch_size`, `num_heads`, or `in_chans` for
            images that are not RGB.
        image_size: side of the global views in pixels.
        drop_path_rate: stochastic depth at the last block, rising linearly from 0.
        license: of the weights, where others released them; written into the card of an export.
    Raises:
        FieldError: for a value that its declaration does not allow.
        UserError: for an argument that is none; in a file (`from_pretrained`, `from_dict`) it is ignored with a warning.
    """

    citation: ClassVar[str] = ""
    freeze_patch_embed = sincos_position_embeddings = False  # of a method that declares no fields of these names

    backbone: str = "vit_small_patch16_224"
    backbone_kwargs: dict | None = None
    image_size: Pixels = 224
    drop_path_rate: Annotated[float, Range(0, below=1)] = 0.0
    license: str | None = None

    def __post_init__(self, **kwargs):
        for key in self._unknown(kwargs):
            raise UserError(f"{type(self).__name__} has no argument {key!r}. {self.nearest(key)}")
        if (model_type := kwargs.pop("model_type", self.model_type)) != self.model_type:
            raise UserError(f"expected model_type {self.model_type!r} for {type(self).__name__}, got {model_type!r}")
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value) -> None:
        kind = self.declarations().get(name)
        super().__setattr__(name, value if kind is None else check(kind, value, name))

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers; keys that this class does not have are ignored, and changed fields checked with the others."""
        if unknown := cls._unknown(config_dict):
            logger.warning(
                "ignoring fields of a configuration file that %s does not have: %s", cls.__name__, ", ".join(unknown)
            )
        known = {key: value for key, value in config_dict.items() if key not in (*unknown, "model_type")}
        changes = {key: kwargs.pop(key) for key in cls.declarations() if key in kwargs}
        return super().from_dict(known | changes, **kwargs)

    @classmethod
    def _unknown(cls, arguments: dict) -> list[str]:
        known = {field.name for field in fields(cls)} | NOT_FIELDS
        return [key for key in arguments if key not in known and not key.startswith("_")]

    @property
    def hidden_size(self) -> int:
        """Channels C of the base's features, from timm's description of the backbone."""
        from hssl_hf.modules.backbone import feature_width

        return feature_width(self.backbone, self.image_size, self.backbone_kwargs or {})

    @property
    def num_channels(self) -> int:
        """Channels of an image: `in_chans` of `backbone_kwargs`, as timm calls it, 3 where it is not set."""
        return (self.backbone_kwargs or {}).get("in_chans", 3)

    def describe(self) -> tuple[str, str]:
        """A short name of the method, and a phrase for what it consists of with these values."""
        raise NotImplementedError

    def described_in(self) -> list[str]:
        """Files of the package, without suffix, whose `Differs:` lines concern a model with these values."""
        raise NotImplementedError


def check_decoder(hidden_size: int, heads: int) -> None:
    """Raise a FieldError if attention heads or the sines and cosines of its positions do not divide a decoder's channels."""
    if hidden_size % 4:
        raise FieldError(f"decoder_hidden_size: expected a multiple of 4, for its fixed positions, got {hidden_size}")
    if hidden_size % heads:
        raise FieldError(f"decoder_num_attention_heads: expected a divisor of decoder_hidden_size={hidden_size}, got {heads}")
