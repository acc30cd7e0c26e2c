"""Objectives: one file per loss, who supervises whom, and the discrepancy.

An objective makes the heads that it needs (`make_heads`) and is called with the tokens of student and teacher. It applies the
heads itself, so that it decides which tokens are projected at all. The objectives of siamese and masked image modeling compare
predictions with targets and are plain functions.
"""

from hssl_hf.objectives.dino import DINO
from hssl_hf.objectives.ibot import IBOT
from hssl_hf.objectives.moco_v3 import MoCoV3
from hssl_hf.objectives.reconstruction import pixel_targets, reconstruction
from hssl_hf.objectives.supervision import ObjectiveOutput
from hssl_hf.objectives.unigrad import normalize, unigrad

OBJECTIVES = {"dino": DINO, "ibot": IBOT, "moco_v3": MoCoV3}

__all__ = ["OBJECTIVES", "ObjectiveOutput", "normalize", "pixel_targets", "reconstruction", "unigrad"]
