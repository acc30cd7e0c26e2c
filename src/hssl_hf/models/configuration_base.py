"""What the configurations of all methods share: everything that the rest of the package knows of a method by its name."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class PreTrainingConfig(PreTrainedConfig):
    """Configuration of a method of self-supervised pre-training.

    A subclass sets `model_type` and `citation` and summarizes its values in `describe` and `described_in`. Recipes,
    cards, reports and the Auto classes read a method from here.

    Args:
        backbone: name of a timm model.
        backbone_kwargs: further arguments of that model, such as `embed_dim`, `patch_size` or `num_heads`.
        image_size: side of the global views in pixels.
        drop_path_rate: stochastic depth at the last block, rising linearly from 0.
        license: of the weights, where others released them; written into the card of an export.
    """

    citation: ClassVar[str] = ""

    backbone: str = "vit_small_patch16_224"
    backbone_kwargs: dict | None = None
    image_size: int = 224
    drop_path_rate: float = 0.0
    license: str | None = None

    @classmethod
    def field_names(cls) -> list[str]:
        """Fields that this package declares, inherited ones first."""
        ours = [parent for parent in reversed(cls.__mro__) if parent.__module__.startswith("hssl_hf.")]
        names = [name for parent in ours for name in parent.__annotations__ if name != "citation"]
        return list(dict.fromkeys(names))

    def describe(self) -> tuple[str, str]:
        """A short name of the method, and a phrase for what it consists of with these values."""
        raise NotImplementedError

    def described_in(self) -> list[str]:
        """Files of the package, without suffix, whose `Differs:` lines concern a model with these values."""
        raise NotImplementedError
