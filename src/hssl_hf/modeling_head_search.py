"""HeadSearchForPreTraining: candidates for the auxiliary head side by side on one base, to see which differs most from it."""

import copy

import torch
from torch import Tensor, nn

from hssl_hf.auxiliary import BLOCKS
from hssl_hf.configuration_head_search import HeadSearchConfig
from hssl_hf.modeling_hssl import HSSLOutput, build_auxiliary, build_base
from hssl_hf.objectives import OBJECTIVES
from hssl_hf.student_teacher import StudentTeacherModel
from hssl_hf.tokens import Branches, Tokens


class SearchNetwork(nn.Module):
    """A base model, candidates behind it, and the projections of base and candidate, apart for every candidate."""

    def __init__(self, base: nn.Module, candidates: nn.ModuleDict, heads: nn.ModuleDict, patches: bool):
        super().__init__()
        self.base, self.candidates, self.heads, self.patches = base, candidates, heads, patches

    def forward(self, pixels: Tensor, masks: Tensor | None = None) -> tuple[Tokens, dict[str, Branches]]:
        """(V, B, 3, H, W) views and (V, B, h, w) masks -> tokens of the base, and its pair with every candidate."""
        views = pixels.shape[:2]
        tokens, features = self.base(pixels.flatten(0, 1), None if masks is None else masks.flatten(0, 1))
        pairs = {name: Branches(tokens, head(features, self.patches)) for name, head in self.candidates.items()}
        return tokens, {name: pair.map(lambda x: x.unflatten(0, views)) for name, pair in pairs.items()}


class HeadSearchForPreTraining(StudentTeacherModel):
    """Train all candidates at once, each as if it were the auxiliary head; the losses are averaged.

    `parts` of the output has the terms of every candidate with its name behind them, and `discrepancy_<candidate>`: the larger
    it is, the more the base is expected to gain. Prototypes, where there are any, are shared by all.

    Source: HSSL, section 3.5, equations 6-8 and figure 4.
    """

    config_class = HeadSearchConfig

    def __init__(self, config: HeadSearchConfig):
        super().__init__(config)
        objectives = {name: OBJECTIVES[config.objective](config) for name in config.candidates}
        seeds = torch.randint(2**62, (1 + 2 * len(BLOCKS),), device="cpu").tolist()
        candidates, heads = {}, {}
        with torch.random.fork_rng():
            torch.manual_seed(seeds[0])
            base = build_base(config)
            for name, objective in objectives.items():  # a candidate starts alike whoever else is there
                place = 1 + 2 * sorted(BLOCKS).index(name)
                torch.manual_seed(seeds[place])
                candidates[name] = build_auxiliary(config, name, base)
                torch.manual_seed(seeds[place + 1])
                heads[name] = objective.make_heads(base.width)
        patches = any("auxiliary" in arrow for arrow in config.patch_supervision)
        self.student = SearchNetwork(base, nn.ModuleDict(candidates), nn.ModuleDict(heads), patches)
        self.prototypes_of = next(iter(heads)) if hasattr(next(iter(heads.values())), "prototypes") else None
        self._share_prototypes(self.student)
        self.teacher = copy.deepcopy(self.student)
        self._share_prototypes(self.teacher)
        self.teacher.base.mask_token = None
        for name, objective in objectives.items():
            objective.drop_student_parts(self.teacher.heads[name])
        self.objectives = nn.ModuleDict(objectives)
        first = next(iter(objectives.values()))
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
        _, student = self.student(global_pixels, masks)
        local = {} if local_pixels is None else self.student(local_pixels)[1]
        losses, parts, found = [], {}, []
        for name, objective in self.objectives.items():
            output = objective(
                student[name], local.get(name), teacher[name], self.student.heads[name], self.teacher.heads[name],
                masks=masks, masked_indices=masked_indices, temperature=teacher_temperature,
            )  # fmt: skip
            losses.append(output.loss)
            found.append(output.discrepancy)
            parts |= {f"{key}_{name}": value for key, value in output.parts.items()}
            parts[f"discrepancy_{name}"] = output.discrepancy
        loss = torch.stack(losses).mean()
        return HSSLOutput(loss=loss, parts=parts, discrepancy=torch.stack(found).mean(), features=tokens.cls)

    def update_teacher(self, momentum: float) -> None:
        """After the optimizer step: move the teacher towards the student and the centres towards the last batch."""
        super().update_teacher(momentum)
        for objective in self.objectives.values():
            objective.update()

    def parts(self) -> dict[str, list[nn.Parameter]]:
        shared = self.student.heads[self.prototypes_of].prototypes.parameters() if self.prototypes_of else []
        return {**super().parts(), **({"prototypes": list(shared)} if self.prototypes_of else {})}

    def _share_prototypes(self, network: SearchNetwork) -> None:
        """Let all heads use the prototypes of the first, which alone owns them."""
        if self.prototypes_of is None:
            return
        shared = network.heads[self.prototypes_of].prototypes
        for name, heads in network.heads.items():
            if name != self.prototypes_of:
                heads._modules.pop("prototypes", None)
                object.__setattr__(heads, "prototypes", shared)
