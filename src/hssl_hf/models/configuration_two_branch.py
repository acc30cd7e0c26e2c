"""Configuration of a heterogeneous pair: a base model and the auxiliary head behind it."""

from typing import Annotated, Literal, get_args

from hssl_hf.fields import Depth, Distinct, FieldError, Length, Range, Width, check
from hssl_hf.models.configuration_base import PreTrainingConfig
from hssl_hf.publish.citations import HSSL

Family = Literal["convnext", "poolformer", "resmlp", "resnet", "swin", "vit"]  # data, so that a configuration needs no torch
FAMILIES = get_args(Family)
NAMES = dict(zip(FAMILIES, ("ConvNeXt", "PoolFormer", "ResMLP", "ResNet", "Swin", "ViT"), strict=True))


class TwoBranchConfig(PreTrainingConfig):
    """A base model and what is trained beside it.

    Args:
        (those of `PreTrainingConfig`; the drop path rises over base and head together)
        auxiliary: family of the auxiliary head (convnext, poolformer, resmlp, resnet, swin, vit), several families whose
            representations are concatenated, or None; with a parallel connection the name of a timm model.
        auxiliary_connection: serial, a head behind the base's features, or parallel, a second network on the image (Table 17).
        auxiliary_depth: its number of blocks.
        auxiliary_first_shortcut: keep its first shortcut (an ablation).
        auxiliary_sublayers: of its blocks: token_mixer and mlp, or one of them alone (Table 15).
        auxiliary_pooling: of poolformer where the first shortcut is removed: plain, or minus_input, less the pooling's input,
            as PoolFormer has it for the shortcut to add back.
        auxiliary_hidden_size: its channels; None for those of the backbone.
        auxiliary_init: its linear layers: trunc_normal (standard deviation .02, as released), or xavier, which suits widths far
            below 768, where .02 is much too small for a head without first shortcut.
        freeze_patch_embed: leave the patch embedding at its random initial values, as in MoCo v3 (vision transformers).
        sincos_position_embeddings: fixed sine-cosine position embeddings, as in MoCo v3 and MAE (vision transformers).
    Raises:
        FieldError: for families, or combinations that do not exist.
    Source: HSSL, sections 3 and 5.
    """

    citation = HSSL

    drop_path_rate: Annotated[float, Range(0, below=1)] = 0.1
    auxiliary: str | Annotated[tuple[str, ...], Length(1, len(FAMILIES)), Distinct()] | None = "convnext"
    auxiliary_connection: Literal["serial", "parallel"] = "serial"
    auxiliary_depth: Depth = 3
    auxiliary_first_shortcut: bool = False
    auxiliary_sublayers: Annotated[tuple[Literal["token_mixer", "mlp"], ...], Length(1, 2), Distinct()] = ("token_mixer", "mlp")
    auxiliary_pooling: Literal["plain", "minus_input"] = "plain"
    auxiliary_hidden_size: Width | None = None
    auxiliary_init: Literal["trunc_normal", "xavier"] = "trunc_normal"
    freeze_patch_embed: bool = False
    sincos_position_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.auxiliary_connection == "serial":
            for family in self.families:
                check(Family, family, "auxiliary")
        elif len(self.families) != 1:
            raise FieldError(
                f"auxiliary: expected the name of one timm model for a parallel connection, got {self.auxiliary!r}"
            )

    def describe_heads(self) -> str:
        """A phrase that names what is trained beside the base."""
        names = [NAMES.get(family, family) for family in self.families]
        if self.auxiliary_connection == "parallel":
            return f"a {names[0]} beside it"
        return f"{' and '.join(names)} heads" if len(names) > 1 else f"a {names[0]} head"

    def heads_described_in(self) -> list[str]:
        """`described_in` of what is trained beside the base."""
        families = self.families if self.auxiliary_connection == "serial" else ()
        return [f"auxiliary/{name}" for name in ("head", *families)] if self.families else []

    @property
    def families(self) -> tuple[str, ...]:
        """Families of the auxiliary heads, none without."""
        if self.auxiliary is None:
            return ()
        return (self.auxiliary,) if isinstance(self.auxiliary, str) else tuple(self.auxiliary)
