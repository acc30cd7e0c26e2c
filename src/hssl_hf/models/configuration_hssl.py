"""Configuration of `HSSLForPreTraining`: backbone × auxiliary head × objective, and who teaches whom."""

from typing import Annotated, Literal

from hssl_hf.fields import Depth, Distinct, FieldError, Fraction, Length, Range, Temperature, Width
from hssl_hf.models.configuration_two_branch import TwoBranchConfig
from hssl_hf.publish.citations import CITATIONS, HSSL

Arrow = Literal[
    "base->base", "base->auxiliary", "auxiliary->base", "auxiliary->auxiliary", "base->shallow", "shallow->base",
    "shallow->shallow",
]  # fmt: skip
METHODS = {"dino": "DINO", "ibot": "iBOT", "moco_v3": "MoCo v3"}  # of the objectives
Arrows = Annotated[tuple[Arrow, ...], Length(0, 4), Distinct()]


class HSSLConfig(TwoBranchConfig):
    """Heterogeneous self-supervised learning of one base model with one auxiliary head.

    Who teaches whom is a list of arrows "teacher->learner" between the branches "base", "auxiliary" and "shallow". The teacher
    side is the momentum network, the learner side the student. A method without auxiliary head is `auxiliary=None` with arrows
    "base->base".

    Args:
        (those of `TwoBranchConfig`)
        objective: dino, ibot or moco_v3.
        cls_supervision: arrows of the image level; None for the head teaching both, or without a head the base itself.
        patch_supervision: arrows of the patch level (ibot); None for the base as its own teacher, where there is a patch level.
        reduction: how the terms of several arrows combine.
        shallow_block: block of the base, counted from 1, whose class token is the branch "shallow", for the base to supervise
            (deep-to-shallow, Table 19; without a head, at the image level).
        visible_patches_only: the student encodes only the visible patches of the global views, as in MAE (without a head, at
            the image level; SiameseIM, Table 3: "MoCo-v3 with mask").
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
    shallow_block: Depth | None = None
    visible_patches_only: bool = False
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
        self._require_base_alone()
        for name in ("cls_supervision", "patch_supervision"):
            arrows = list(getattr(self, name))
            branches = {branch for arrow in parse_arrows(arrows) for branch in arrow}
            if self.auxiliary is None and "auxiliary" in branches:
                raise FieldError(f"{name}: {arrows} needs an auxiliary head, but auxiliary is null; expected ['base->base']")
            if self.shallow_block is None and "shallow" in branches:
                raise FieldError(f"{name}: {arrows} needs shallow_block, the block that is supervised, which is null")
            idle = next(iter(branches - self.learners), None)
            if idle and not self.shared_projection:
                raise FieldError(
                    f"{name}: the branch {idle!r} teaches but learns nowhere, so that its projection would stay random; "
                    f"add an arrow to {idle!r} or set shared_projection"
                )

    def _require_base_alone(self) -> None:
        for name in ("shallow_block", "visible_patches_only"):
            if getattr(self, name) and (self.auxiliary is not None or self.patch_supervision):
                raise FieldError(
                    f"{name}: expected a base alone at the image level; set auxiliary to null and patch_supervision to []"
                )
        if self.shallow_block is not None and self.visible_patches_only:
            raise FieldError("shallow_block: expected null, since it cannot be combined with visible_patches_only")

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

    @property
    def citation(self) -> str:
        """That of the base method where it is trained alone."""
        return CITATIONS.get(self.describe()[0], HSSL)

    def describe(self) -> tuple[str, str]:
        name = METHODS[self.objective]
        if self.shallow_block is not None:
            return f"{name} deep-to-shallow", f"{name}, also supervising block {self.shallow_block} of the base"
        if self.auxiliary is None:
            masked = " on the visible patches of masked images" if self.visible_patches_only else ""
            return name, f"{name} alone, without an auxiliary head{masked}"
        return "HSSL", f"heterogeneous self-supervised learning: {name} with {self.describe_heads()}"

    def described_in(self) -> list[str]:
        masks = ["data/masking"] if self.patch_supervision or self.visible_patches_only else []
        own = ["models/configuration_hssl", *self.heads_described_in(), f"objectives/{self.objective}"]
        return [*own, *masks, "engine/optim"]


def parse_arrows(arrows: tuple[Arrow, ...]) -> list[tuple[str, str]]:
    """("auxiliary->base", ...) -> [("auxiliary", "base"), ...]: (teacher, learner)."""
    return [tuple(arrow.split("->")) for arrow in arrows]
