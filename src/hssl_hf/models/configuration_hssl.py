"""Configuration of `HSSLForPreTraining`: backbone × auxiliary head × objective, and who teaches whom."""

from typing import Annotated, Literal

from hssl_hf.fields import Distinct, FieldError, Fraction, Length, Range, Temperature, Width
from hssl_hf.models.configuration_two_branch import TwoBranchConfig

Arrow = Literal["base->base", "base->auxiliary", "auxiliary->base", "auxiliary->auxiliary"]
Arrows = Annotated[tuple[Arrow, ...], Length(0, 4), Distinct()]


class HSSLConfig(TwoBranchConfig):
    """Heterogeneous self-supervised learning of one base model with one auxiliary head.

    Who teaches whom is a list of arrows "teacher->learner" between the branches "base" and "auxiliary". The teacher side is
    the momentum network, the learner side the student. A method without auxiliary head is `auxiliary=None` with arrows
    "base->base".

    Args:
        (those of `TwoBranchConfig`)
        objective: dino, ibot or moco_v3.
        cls_supervision: arrows of the image level; None for the head teaching both, or without a head the base itself.
        patch_supervision: arrows of the patch level (ibot); None for the base as its own teacher, where there is a patch level.
        reduction: how the terms of several arrows combine.
        shared_projection: one projection for both branches instead of one each (Table 16).
        projection_hidden_size, projection_size: widths of the projection heads.
        num_prototypes: prototypes K (dino, ibot).
        norm_last_layer: keep the length of every prototype at 1; otherwise it is learned.
        student_temperature: tau_s (dino, ibot).
        center_momentum: momentum of the center (dino, ibot).
        contrastive_temperature: T (moco_v3).
        queue_size: keys of earlier batches that every query is compared with, as in equation 11; 0 compares it with the
            other keys of its own batch instead (moco_v3).
    Raises:
        FieldError: for arrows, families, or combinations that do not exist.
    Source: HSSL, Tables 14-20; released code for the defaults.
    Differs: equations 1 and 2 add the terms of the branches, the released code averages them (`reduction="mean"`).
    """

    model_type = "hssl"

    objective: Literal["dino", "ibot", "moco_v3"] = "ibot"
    cls_supervision: Arrows | None = None
    patch_supervision: Arrows | None = None
    reduction: Literal["mean", "sum"] = "mean"
    shared_projection: bool = False
    projection_hidden_size: Width = 2048
    projection_size: Width = 256
    num_prototypes: Annotated[int, Range(2, 2**22)] = 8192
    norm_last_layer: bool = True
    student_temperature: Temperature = 0.1
    center_momentum: Fraction = 0.9
    contrastive_temperature: Temperature = 0.2
    queue_size: Annotated[int, Range(0, 2**24)] = 0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.cls_supervision is None:
            self.cls_supervision = ("base->base",) if self.auxiliary is None else ("auxiliary->base", "auxiliary->auxiliary")
        if self.patch_supervision is None:
            self.patch_supervision = ("base->base",) if self.objective == "ibot" else ()
        if self.queue_size and self.objective != "moco_v3":
            raise FieldError(f"queue_size: expected 0, since only moco_v3 has a queue, got {self.queue_size}")
        if not self.cls_supervision:
            raise FieldError(
                "cls_supervision: expected an arrow such as 'base->base', since nothing would teach the image level"
            )
        if self.objective != "ibot" and self.patch_supervision:
            raise FieldError(f"patch_supervision: expected [], since objective {self.objective!r} has no patch level")
        for name in ("cls_supervision", "patch_supervision"):
            branches = {branch for arrow in parse_arrows(getattr(self, name)) for branch in arrow}
            if self.auxiliary is None and "auxiliary" in branches:
                arrows = list(getattr(self, name))
                raise FieldError(f"{name}: {arrows} needs an auxiliary head, but auxiliary is null; expected ['base->base']")
            idle = next(iter(branches - self.learners), None)
            if idle and not self.shared_projection:
                raise FieldError(
                    f"{name}: the branch {idle!r} teaches but learns nowhere, so that its projection would stay random; "
                    f"add an arrow to {idle!r} or set shared_projection"
                )

    @property
    def cls_arrows(self) -> list[tuple[str, str]]:
        """(teacher, learner) of every arrow of the image level."""
        return parse_arrows(self.cls_supervision)

    @property
    def patch_arrows(self) -> list[tuple[str, str]]:
        """(teacher, learner) of every arrow of the patch level."""
        return parse_arrows(self.patch_supervision)

    @property
    def learners(self) -> set[str]:
        """Branches that learn, at the image or the patch level."""
        return {learner for _, learner in (*self.cls_arrows, *self.patch_arrows)}

    @property
    def supervises_auxiliary_patches(self) -> bool:
        """Whether the auxiliary head takes part in the patch level."""
        return any("auxiliary" in arrow for arrow in self.patch_arrows)

    def describe(self) -> tuple[str, str]:
        if self.auxiliary is None:
            return self.objective, f"{self.objective} alone, without an auxiliary head"
        return "HSSL", f"heterogeneous self-supervised learning: {self.objective} with {self.describe_heads()}"

    def described_in(self) -> list[str]:
        masks = ["data/masking"] if self.patch_supervision else []
        own = ["models/configuration_hssl", *self.heads_described_in(), f"objectives/{self.objective}"]
        return [*own, *masks, "engine/optim"]


def parse_arrows(arrows: tuple[Arrow, ...]) -> list[tuple[str, str]]:
    """("auxiliary->base", ...) -> [("auxiliary", "base"), ...]: (teacher, learner)."""
    return [tuple(arrow.split("->")) for arrow in arrows]
