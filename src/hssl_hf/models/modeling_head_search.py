"""HeadSearchForPreTraining: candidates for the auxiliary head side by side on one base, ranked by how much they differ."""

import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hssl_hf.auxiliary import BLOCKS, build_head
from hssl_hf.models.configuration_head_search import HeadSearchConfig
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_hssl import HSSLModel, ObjectivePreTrainedModel
from hssl_hf.models.modeling_two_branch import build_base
from hssl_hf.modules.tokens import Branches, Tokens
from hssl_hf.objectives import OBJECTIVES
from hssl_hf.objectives.dino import prototypes_of
from hssl_hf.objectives.supervision import Objective, ObjectiveInputs, ObjectiveOutput, combine

COMMON = "patches"  # the patch level of the base, which is the same for all candidates


class SearchTokens(NamedTuple):
    """The representations by the base and by every candidate."""

    base: Tokens
    candidates: dict[str, Tokens]

    def pair(self, name: str) -> Branches:
        return Branches(self.base, self.candidates[name])


class HeadSearchNetwork(nn.Module):
    """A base model, candidates behind it, and projections of base and candidate, separate for every candidate.

    Each is built from a seed of its own, so that a candidate starts from the same values whatever the others are.
    """

    def __init__(self, config: HeadSearchConfig, objectives: dict[str, Objective]):
        super().__init__()
        self.auxiliary_patches = config.supervises_auxiliary_patches
        seeds = torch.randint(2**62, (2 + 2 * len(BLOCKS),), device="cpu").tolist()
        with torch.random.fork_rng():
            torch.manual_seed(seeds[0])
            self.base = build_base(config, mask_token=bool(config.patch_supervision))
            self.candidates, self.heads = nn.ModuleDict(), nn.ModuleDict()
            for name in config.candidates:
                index = 2 + 2 * sorted(BLOCKS).index(name)
                torch.manual_seed(seeds[index])
                self.candidates[name] = build_head(name, config, self.base.width, self.base.grid, self.base.rates)
                torch.manual_seed(seeds[index + 1])
                widths = {"base": self.base.width, "auxiliary": self.candidates[name].width}
                self.heads[name] = objectives[name].make_heads(widths)
            if COMMON in objectives:
                torch.manual_seed(seeds[1])
                self.heads[COMMON] = objectives[COMMON].make_heads({"base": self.base.width})

    def forward(
        self, pixels: Tensor, bool_masked_pos: Tensor | None = None, mask_indices: Tensor | None = None
    ) -> SearchTokens:
        """(V, B, 3, H, W) views and (V, B, h, w) mask -> tokens with the same two leading axes."""
        unflatten = partial(torch.unflatten, dim=0, sizes=pixels.shape[:2])
        tokens, features = self.base(pixels.flatten(0, 1), None if bool_masked_pos is None else bool_masked_pos.flatten(0, 1))
        candidates = {name: head(features, self.auxiliary_patches).map(unflatten) for name, head in self.candidates.items()}
        return SearchTokens(tokens.map(unflatten), candidates)


class HeadSearchForPreTraining(ObjectivePreTrainedModel):
    """Train all candidates at once, each as if it were the auxiliary head; the losses are averaged.

    `losses` and `metrics` of the output have an entry of every candidate, with its name behind it; the larger
    `discrepancy_<candidate>`, the larger the expected gain of the base; `discrepancy` is the mean over the candidates.
    Every candidate has projections and, where there are any, prototypes of its own, so that none interferes with another.

    Source: HSSL, section 3.5, equations 6-8 and figure 4.
    Differs: patch-level losses of the base alone, which are the same for all candidates, are computed once, with a projection
        and prototypes of their own. That the prototypes are separate is not printed; the paper has separate projections, and
        candidates that learn without interference.
    """

    config_class = HeadSearchConfig

    def __init__(self, config: HeadSearchConfig):
        super().__init__(config)
        alone, common = _split_levels(config)
        objectives = {name: OBJECTIVES[config.objective](alone) for name in config.candidates}
        if common is not None:
            objectives[COMMON] = OBJECTIVES[config.objective](common)
        self.student = HeadSearchNetwork(config, objectives)
        self.teacher = copy.deepcopy(self.student)
        for name, objective in objectives.items():
            objective.remove_student_only_modules(self.teacher.heads[name])
        self.objectives = nn.ModuleDict(objectives)
        self._finish_init()

    def _compare(self, student, teacher, local, masks_and_temperature: tuple) -> ObjectiveOutput:
        heads = {name: (self.student.heads[name], self.teacher.heads[name]) for name in self.objectives}
        outputs = {}
        for name in self.config.candidates:
            tokens = (student.pair(name), teacher.pair(name), *heads[name], None if local is None else local.pair(name))
            outputs[name] = self.objectives[name](ObjectiveInputs(*tokens, *masks_and_temperature))
        losses = {f"{key}_{name}": value for name, output in outputs.items() for key, value in output.losses.items()}
        metrics = {}
        for name, output in outputs.items():
            metrics |= {f"{key}_{name}": value for key, value in output.metrics.items()}
            metrics[f"discrepancy_{name}"] = output.discrepancy
        loss = torch.stack([output.loss for output in outputs.values()]).mean()
        discrepancy = torch.stack([output.discrepancy for output in outputs.values()]).mean()
        if COMMON in self.objectives:
            inputs = ObjectiveInputs(
                Branches(student.base), Branches(teacher.base), *heads[COMMON], None, *masks_and_temperature
            )
            common = self.objectives[COMMON].compare_patches(inputs, *prototypes_of(*heads[COMMON]))
            loss, losses = loss + combine(common, self.config.reduction), losses | common
        return ObjectiveOutput(loss, losses, metrics, discrepancy)


class HeadSearchModel(HSSLModel):
    """The teacher's base after a search, as `HSSLModel`."""

    config_class = HeadSearchConfig


def _split_levels(config: HeadSearchConfig) -> tuple[HSSLConfig, HSSLConfig | None]:
    """The levels that every candidate computes for itself, and the patch level where no candidate is involved in it."""
    if not config.patch_supervision or config.supervises_auxiliary_patches:
        return config, None
    alone, common = copy.copy(config), copy.copy(config)
    alone.patch_supervision, common.cls_supervision = [], []
    return alone, common
