"""Shared fixtures: tiny models, real images on disk, no network."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models of tests are too small to gain from threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # uploads by plain LFS, which the server for tests speaks
if "HF_ASSETS_CACHE" not in os.environ:  # where features are kept
    os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp(prefix="hssl-hf-assets-")
    atexit.register(shutil.rmtree, os.environ["HF_ASSETS_CACHE"], ignore_errors=True)

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.processes import run_code

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "training" / "data" / "fashion_mnist"

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("repeatable")

for number, action in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    signal.signal(number, action)  # under nohup, or in the background of a shell, they are ignored, which programs inherit


def pytest_collection_finish():
    """Collect garbage rarely, and never look through the libraries for it: a tenth of the time of the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture
def golden():
    """Arrays made by the original implementations, read from the folder that HSSL_HF_GOLDENS names."""

    def load(name: str) -> dict[str, np.ndarray]:
        folder = os.environ.get("HSSL_HF_GOLDENS")
        if not folder or not (Path(folder) / f"{name}.npz").is_file():
            pytest.skip(f"needs {name}.npz of the original implementations; set HSSL_HF_GOLDENS to its folder")
        return dict(np.load(Path(folder) / f"{name}.npz"))

    return load


@pytest.fixture
def photographs() -> Path:
    """Real photographs as parquet, read from HSSL_HF_PHOTOGRAPHS; the embedded sample holds only small gray images."""
    folder = os.environ.get("HSSL_HF_PHOTOGRAPHS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs photographs as parquet with a column 'image'; set HSSL_HF_PHOTOGRAPHS to their folder")
    return Path(folder)


TINY_VIT = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


def checkpointing(model, action: str):
    """A method or property of activation checkpointing ("is", "enable", "disable"), which used to be named after gradients."""
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    return getattr(model, f"is_{word}_checkpointing" if action == "is" else f"{word}_checkpointing_{action}")


def tiny_config(**changes):
    from hssl_hf import HSSLConfig

    arguments = {
        "backbone": "vit_tiny_patch16_224",
        "backbone_kwargs": TINY_VIT,
        "image_size": 32,
        "auxiliary": "convnext",
        "auxiliary_depth": 2,
        "projection_hidden_size": 48,
        "projection_size": 24,
        "num_prototypes": 40,
        **changes,
    }
    if arguments.get("objective", "ibot") != "ibot":
        arguments.setdefault("patch_supervision", [])
    return HSSLConfig(**arguments)


def tiny_model(seed: int = 0, **changes):
    from hssl_hf import HSSLForPreTraining

    torch.manual_seed(seed)
    return HSSLForPreTraining(tiny_config(**changes))


def tiny_views(seed: int = 0, images: int = 4, local: int = 3, size: int = 32, grid: int | None = 4) -> dict:
    """Arguments of a forward: 2 global and some local views of random images, about a third of the grid's patches masked."""
    generator = torch.Generator().manual_seed(seed)
    views = {"pixel_values": torch.randn(2, images, 3, size, size, generator=generator)}
    if local:
        views["local_pixel_values"] = torch.randn(local, images, 3, size // 2, size // 2, generator=generator)
    if grid:
        views["bool_masked_pos"] = torch.rand(2, images, grid, grid, generator=generator) < 0.3
    return views


def tiny_siamese(seed: int = 0, **changes):
    from hssl_hf import SiameseIMConfig, SiameseIMForPreTraining

    torch.manual_seed(seed)
    arguments = {
        "backbone": "vit_tiny_patch16_224",
        "backbone_kwargs": TINY_VIT,
        "image_size": 32,
        "decoder_num_attention_heads": 4,
        "projector_depth": 1,
        "decoder_num_hidden_layers": 2,
        **changes,
    }
    return SiameseIMForPreTraining(SiameseIMConfig(**arguments))


def write_stock_backbone(folder: Path) -> Path:
    """A tiny ViT of transformers with its image processor, as an export has them, but for card and marker."""
    from hssl_hf.publish.image_processor import image_processor
    from hssl_hf.publish.to_transformers import to_transformers

    to_transformers(tiny_model().teacher.base, 32).save_pretrained(folder)
    image_processor(32).save_pretrained(folder)
    return folder


MAE = {
    "target": "pixel",
    "views": "same",
    "decoder_norm": "layer",
    "projector_depth": 0,
    "decoder_hidden_size": 32,
    "final_norm": True,
    "freeze_patch_embed": False,
}


def siamese_views(seed: int = 0, images: int = 4, views: int = 2, masked: int = 10) -> dict:
    """Arguments of a forward: views of random images of 32 pixels, cropped at random, 10 of 16 patches of the first masked."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(images, 16, generator=generator).argsort(1)
    boxes = torch.rand(views, images, 5, generator=generator)
    boxes[..., 2:4] = 30 + 60 * boxes[..., 2:4]
    boxes[..., :2] *= 40
    boxes[..., 4] = (boxes[..., 4] < 0.5).float()
    return {
        "pixel_values": torch.randn(views, images, 3, 32, 32, generator=generator),
        "bool_masked_pos": (order < masked).view(1, images, 4, 4),
        "crop_boxes": boxes,
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on localhost, which the libraries take for theirs, with a cache of its own."""
    from huggingface_hub import constants

    from hssl_hf.publish import hub as hub_module
    from tests.hub_server.server import HubServer

    with HubServer() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(hub_module, "FIRST_PAUSE", 0.0)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
        yield server


@pytest.fixture
def unchecked(monkeypatch):
    """Skip the comparison in a fresh process, which takes seconds; other tests are about it."""
    from hssl_hf.publish import parity

    monkeypatch.setattr(parity, "compare", lambda *_: {})


@pytest.fixture
def forked_parity(monkeypatch):
    """Compare exports in a forked process that has imported the libraries but not this package."""
    from hssl_hf.publish import parity

    monkeypatch.setattr(parity, "subprocess", SimpleNamespace(run=run_code))
