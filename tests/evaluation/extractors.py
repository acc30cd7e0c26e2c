"""Extractors for tests, in this process."""

from accelerate import Accelerator
from transformers import BitImageProcessor

from hssl_hf.engine.distributed import make_accelerator
from hssl_hf.evaluation.extraction import ExtractionConfig, Extractor
from hssl_hf.evaluation.feature_cache import FeatureCache


def accelerator() -> Accelerator:
    return make_accelerator(False, 1, 1)


def processor(size: int) -> BitImageProcessor:
    return BitImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def extractor(size: int, cache: FeatureCache | None = None, **config) -> Extractor:
    """For images of this side, without workers."""
    return Extractor(accelerator(), processor(size), ExtractionConfig(**{"num_workers": 0, **config}), cache)
