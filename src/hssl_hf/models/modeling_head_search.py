"""HeadSearchForPreTraining: candidates for the auxiliary head side by side on one base, ranked by how much they differ."""

import copy

import torch
from torch import Tensor, nn

from hssl_hf.auxiliary import BLOCKS
from hssl_hf.models.configuration_head_search import HeadSearchConfig
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_hssl import HSSLForPreTrainingOutput, adopt_requirements
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.models.modeling_two_branch import build_base, build_head
from hssl_hf.modules.tokens import Branches, Tokens
from hssl_hf.objectives import OBJECTIVES, ObjectiveInputs
from hssl_hf.objectives.dino import prototypes_of
from hssl_hf.objectives.supervision import combine

COMMON = "patches"  # the patch level of the base, which is the same for all candidates


class HeadSearchNetwork(nn.Module):
    """A base model, candidates behind it, and projections of base and candidate, separate for every candidate."""

    def __init__(self, base: nn.Module, candidates: nn.ModuleDict, heads: nn.ModuleDict, auxiliary_patches: bool):
        super().__init__()
        self.base, self.candidates, self.heads, self.auxiliary_patches = base, candidates, heads, auxiliary_patches

    def forward(self, pixels: Tensor, bool_masked_pos: Tensor | None = None) -> tuple[Tokens, dict[str, Branches]]:
        """(V, B, 3, H, W) views and (V, B, h, w) mask -> tokens of the base, and its pair with every candidate."""
        views = pixels.shape[:2]
        tokens, features = self.base(pixels.flatten(0, 1), None if bool_masked_pos is None else bool_masked_pos.flatten(0, 1))
        tokens = tokens.map(lambda x: x.unflatten(0, views))
        heads = {name: head(features, self.auxiliary_patches) for name, head in self.candidates.items()}
        return tokens, {name: Branches(tokens, head.map(lambda x: x.unflatten(0, views))) for name, head in heads.items()}


class HeadSearchForPreTraining(StudentTeacherPreTrainedModel):
    """Train all candidates at once, each as if it were the auxiliary head; the losses are averaged.

    `losses` and `metrics` of the output have an entry of every candidate, with its name behind it; the larger
    `discrepancy_<candidate>`, the larger the expected gain of the base. Prototypes, where there are any, are shared by all.
    Patch-level losses of the base alone, which are the same for all candidates, are computed once, with a projection of their
    own.

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
            objective.remove_student_only_modules(self.teacher.heads[name])
        self.objectives = nn.ModuleDict(objectives)
        adopt_requirements(self, objectives[config.candidates[0]])
        self._finish_init()

    def forward(
        self,
        pixel_values: Tensor,
        local_pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        mask_indices: Tensor | None = None,
        teacher_temperature: float = 0.07,
    ) -> HSSLForPreTrainingOutput:
        """As `HSSLForPreTraining.forward`; `discrepancy` is the mean over the candidates."""
        self.check_views(len(pixel_values), 0 if local_pixel_values is None else len(local_pixel_values))
        with torch.no_grad():
            teacher_base, teacher = self.teacher(pixel_values)
        student_base, student = self.student(pixel_values, bool_masked_pos)
        local = {} if local_pixel_values is None else self.student(local_pixel_values)[1]
        views = (bool_masked_pos, mask_indices, teacher_temperature)
        prototypes = self._prototypes()
        losses, metrics, totals, discrepancies = {}, {}, [], []
        for name in self.config.candidates:
            heads = (self.student.heads[name], self.teacher.heads[name])
            output = self.objectives[name](
                ObjectiveInputs(student[name], teacher[name], *heads, local.get(name), *views, prototypes)
            )
            totals.append(output.loss)
            discrepancies.append(output.discrepancy)
            losses |= {f"{key}_{name}": value for key, value in output.losses.items()}
            metrics |= {f"{key}_{name}": value for key, value in output.metrics.items()}
            metrics[f"discrepancy_{name}"] = output.discrepancy
        loss = torch.stack(totals).mean()
        if COMMON in self.objectives:
            heads = (self.student.heads[COMMON], self.teacher.heads[COMMON])
            inputs = ObjectiveInputs(Branches(student_base), Branches(teacher_base), *heads, None, *views)
            common = self.objectives[COMMON].compare_patches(inputs, *prototypes)
            loss, losses = loss + combine(common, self.config.reduction), losses | common
        discrepancy = torch.stack(discrepancies).mean()
        return HSSLForPreTrainingOutput(loss, losses, metrics, discrepancy, teacher_base.cls.flatten(0, 1))

    def update_teacher(self, momentum: float) -> None:
        """After the optimizer step: move the teacher towards the student and the centers towards the last batch."""
        super().update_teacher(momentum)
        for objective in self.objectives.values():
            objective.update()

    def freezable_parameters(self) -> dict[str, list[nn.Parameter]]:
        return super().freezable_parameters() | (
            {"prototypes": list(self.student.heads[self.owner].prototypes.parameters())} if self.owner else {}
        )

    def _prototypes(self) -> tuple[Tensor, Tensor] | None:
        """The shared prototypes of student and teacher, computed once per step."""
        return prototypes_of(self.student.heads[self.owner], self.teacher.heads[self.owner]) if self.owner else None

    def _share_prototypes(self, network: HeadSearchNetwork) -> None:
        """Let all heads use the prototypes of the first, which alone owns them as parameters."""
        if self.owner is None:
            return
        shared = network.heads[self.owner].prototypes
        for name, heads in network.heads.items():
            if name != self.owner:
                heads._modules.pop("prototypes", None)
                object.__setattr__(heads, "prototypes", shared)


def _split_levels(config: HeadSearchConfig) -> tuple[HSSLConfig, HSSLConfig | None]:
    """The levels that every candidate computes for itself, and the patch level where no candidate is involved in it."""
    if not config.patch_supervision or any("auxiliary" in arrow for arrow in config.patch_supervision):
        return config, None
    alone, common = copy.copy(config), copy.copy(config)
    alone.patch_supervision, common.cls_supervision = [], []
    return alone, common


def _build_network(config: HeadSearchConfig, objectives: dict) -> HeadSearchNetwork:
    """Every module from a seed of its own, so that a candidate starts from the same values whatever the others are."""
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
    auxiliary_patches = any("auxiliary" in arrow for arrow in config.patch_supervision)
    return HeadSearchNetwork(base, nn.ModuleDict(candidates), nn.ModuleDict(heads), auxiliary_patches)
