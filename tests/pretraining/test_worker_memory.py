"""What data workers take: their shuffled images, the one that is decoded, and their batches."""

import pytest
import torch

from hssl_hf.pretraining.setup import build_model
from hssl_hf.pretraining.worker_memory import DECODED, ENCODED, PROCESS, worker_memory
from tests.pretraining.test_estimate import recipe


def bound(*overrides: str) -> tuple[int, float]:
    with torch.device("meta"):
        model = build_model(recipe())
    return worker_memory(recipe("data.shuffle_buffer_size=100", *overrides), model, images=32)


def test_workers_take_what_they_shuffle_decode_and_prepare():
    batch = 32 * 2 * (28 * 28 * 3 + 4 * (11 + 5))  # crops in uint8, color operations and boxes
    reading = (100 + 64) * ENCODED + DECODED * 3 * 375 * 500
    workers, size = bound("data.num_workers=3")
    assert workers == 3 and size == pytest.approx(3 * (PROCESS + reading + 4 * batch) + 2 * batch, rel=0.01)
    workers, size = bound("data.num_workers=0")
    assert workers == 0 and size == pytest.approx(reading + 3 * batch, rel=0.01)
