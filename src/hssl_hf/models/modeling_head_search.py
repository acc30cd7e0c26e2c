"""HeadSearchForPreTraining: candidates for the auxiliary head side by side on one base, to see which differs most from it."""

import copy

import torch
from torch import Tensor, nn

from hssl_hf.auxiliary import BLOCKS
from hssl_hf.models.configuration_head_search import HeadSearchConfig
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_hssl import HSSLOutput
from hssl_hf.models.modeling_student_teacher import StudentTeacherModel
from hssl_hf.models.modeling_two_branch import build_base, build_head
from hssl_hf.modules.tokens import Branches, Tokens
from hssl_hf.objectives import OBJECTIVES
from hssl_hf.objectives.dino import prototypes_of
from hssl_hf.objectives.supervision import combine

COMMON = "patches"  # what the patch level of the base has of its own, beside the candidates


class SearchNetwork(nn.Module):
    """A base model, candidates behind it, and the projections of base and candidate, apart for every candidate."""

    def __init__(self, base: nn.Module, candidates: nn.ModuleDict, heads: nn.ModuleDict, patches: bool):
        super().__init__()
        self.base, self.candidates, self.heads, self.patches = base, candidates, heads, patches

    def forward(self, pixels: Tensor, masks: Tensor | None = None) -> tuple[Tokens, dict[str, Branches]]:
        """(V, B, 3, H, W) views and (V, B, h, w) masks -> tokens of the base, and its pair with every candidate."""
        views = pixels.shape[:2]
        tokens, features = self.base(pixels.flatten(0, 1), None if masks is None else masks.flatten(0, 1))
        tokens = tokens.map(lambda x: x.unflatten(0, views))
        found = {name: head(features, self.patches) for name, head in self.candidates.items()}
        return tokens, {name: Branches(tokens, head.map(lambda x: x.unflatten(0, views))) for name, head in found.items()}


class HeadSearchForPreTraining(StudentTeacherModel):
    """Train all candidates at once, each as if it were the auxiliary head; the losses are averaged.

    `parts` of the output has the terms of every candidate with its name behind them, and `discrepancy_<candidate>`: the larger
    it is, the more the base is expected to gain. Prototypes, where there are any, are shared by all. Patch-level terms of the
    base alone, which are the same for all candidates, are taken once, with a projection of their own.

    Source: HSSL, section 3.5, equations 6-8 and figure 4.
    """

    config_class = HeadSearchConfig

    def __init__(self, config: HeadSearchConfig):
        super().__init__(config)
        alone, common = _split_levels(config)
        objectives = {name: OBJECTIVES[config.objective](alone) for name in config.candidates}
        if common is not None:
            objectives[COMMON] = OBJECTIVES[config.objective](common)
        self.student = _build_network(config, objectives)
        self.owner = config.candidates[0] if hasattr(self.student.heads[config.candidates[0]], "prototypes") else None
        self._share_prototypes(self.student)
        self.teacher = copy.deepcopy(self.student)
        self._share_prototypes(self.teacher)
        self.teacher.base.mask_token = None
        for name, objective in objectives.items():
            objective.drop_student_parts(self.teacher.heads[name])
        self.objectives = nn.ModuleDict(objectives)
        first = objectives[config.candidates[0]]
        self.num_views, self.takes_locals, self.in_batch = first.num_views, first.takes_locals, first.in_batch
        self.masked_views = None if config.patch_supervision else 0
        arrows = (*config.cls_supervision, *config.patch_supervision)
        self.leaves_parameters_idle = not any(arrow.endswith("base") for arrow in arrows)
        self.complete()

    def forward(
        self,
        global_pixels: Tensor,
        local_pixels: Tensor | None = None,
        masks: Tensor | None = None,
        masked_indices: Tensor | None = None,
        teacher_temperature: float = 0.07,
    ) -> HSSLOutput:
        """As `HSSLForPreTraining.forward`; `discrepancy` is the mean over the candidates."""
        self.check_views(len(global_pixels), 0 if local_pixels is None else len(local_pixels))
        with torch.no_grad():
            tokens, teacher = self.teacher(global_pixels)
        base, student = self.student(global_pixels, masks)
        local = {} if local_pixels is None else self.student(local_pixels)[1]
        losses, parts, found, shared = [], {}, [], {}
        if self.owner:
            shared["prototypes"] = prototypes_of(self.student.heads[self.owner], self.teacher.heads[self.owner])
        for name in self.config.candidates:
            output = self.objectives[name](
                student[name], local.get(name), teacher[name], self.student.heads[name], self.teacher.heads[name],
                masks=masks, masked_indices=masked_indices, temperature=teacher_temperature, **shared,
            )  # fmt: skip
            losses.append(output.loss)
            found.append(output.discrepancy)
            parts |= {f"{key}_{name}": value for key, value in output.parts.items()}
            parts[f"discrepancy_{name}"] = output.discrepancy
        loss = torch.stack(losses).mean()
        if COMMON in self.objectives:
            heads = (self.student.heads[COMMON], self.teacher.heads[COMMON], *shared["prototypes"])
            views = (masks, masked_indices, teacher_temperature)
            terms = self.objectives[COMMON].compare_patches(Branches(base), Branches(tokens), *heads, *views)
            loss, parts = loss + combine(terms, self.config.reduction), parts | terms
        features = tokens.cls.flatten(0, 1)
        return HSSLOutput(loss=loss, parts=parts, discrepancy=torch.stack(found).mean(), features=features)

    def update_teacher(self, momentum: float) -> None:
        """After the optimizer step: move the teacher towards the student and the centres towards the last batch."""
        super().update_teacher(momentum)
        for objective in self.objectives.values():
            objective.update()

    def parts(self) -> dict[str, list[nn.Parameter]]:
        shared = self.student.heads[self.owner].prototypes.parameters() if self.owner else []
        return {**super().parts(), **({"prototypes": list(shared)} if self.owner else {})}

    def _share_prototypes(self, network: SearchNetwork) -> None:
        """Let all heads use the prototypes of the first, which alone owns them."""
        if self.owner is None:
            return
        shared = network.heads[self.owner].prototypes
        for name, heads in network.heads.items():
            if name != self.owner:
                heads._modules.pop("prototypes", None)
                object.__setattr__(heads, "prototypes", shared)


def _split_levels(config: HeadSearchConfig) -> tuple[HSSLConfig, HSSLConfig | None]:
    """What every candidate has of its own, and the patch level where no candidate has a part in it."""
    if not config.patch_supervision or any("auxiliary" in arrow for arrow in config.patch_supervision):
        return config, None
    alone, common = copy.copy(config), copy.copy(config)
    alone.patch_supervision, common.cls_supervision = [], []
    return alone, common


def _build_network(config: HeadSearchConfig, objectives: dict) -> SearchNetwork:
    """Every part from a seed of its own: a candidate starts alike whoever else is there."""
    seeds = torch.randint(2**62, (2 + 2 * len(BLOCKS),), device="cpu").tolist()
    candidates, heads = {}, {}
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])
        base = build_base(config, mask_token=bool(config.patch_supervision))
        for name in config.candidates:
            place = 2 + 2 * sorted(BLOCKS).index(name)
            torch.manual_seed(seeds[place])
            candidates[name] = build_head(config, name, base)
            torch.manual_seed(seeds[place + 1])
            heads[name] = objectives[name].make_heads({"base": base.width, "auxiliary": candidates[name].width})
        if COMMON in objectives:
            torch.manual_seed(seeds[1])
            heads[COMMON] = objectives[COMMON].make_heads({"base": base.width})
    patches = any("auxiliary" in arrow for arrow in config.patch_supervision)
    return SearchNetwork(base, nn.ModuleDict(candidates), nn.ModuleDict(heads), patches)
