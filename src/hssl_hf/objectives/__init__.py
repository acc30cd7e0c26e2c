"""Objectives: what it means that a learner agrees with its teacher.

An objective makes the heads that it needs (`make_heads`), is called with what student and teacher say of the views, and
applies the heads itself, so that it decides which tokens are projected at all.
"""

from hssl_hf.objectives.dino import DINO
from hssl_hf.objectives.ibot import IBOT
from hssl_hf.objectives.moco_v3 import MoCoV3
from hssl_hf.objectives.supervision import ObjectiveOutput

OBJECTIVES = {"dino": DINO, "ibot": IBOT, "moco_v3": MoCoV3}

__all__ = ["OBJECTIVES", "ObjectiveOutput"]
