"""Figures are drawn, and show what they should."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hssl_hf.data.augmentation import ViewConfig
from hssl_hf.data.source import Source
from hssl_hf.data.views import Views
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.images import LabeledImages
from hssl_hf.publish import parity
from hssl_hf.publish.export import export_backbone
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.visualization import figures
from tests.conftest import SAMPLE, tiny_model

CLS = Representation()


@pytest.fixture
def splits():
    return [LabeledImages(Source(str(SAMPLE), split=split), limit=40) for split in ("train", "test")]


@pytest.fixture
def drawn(monkeypatch):
    """Names and rows of every figure, by file name."""
    figures_by_name = {}
    monkeypatch.setattr(figures, "_grid", lambda rows, path: figures_by_name.update({path.name: rows}))
    return figures_by_name


def test_an_export_is_drawn_with_what_it_has(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "compare", lambda *_: {})
    figures.draw_export(export_backbone(tiny_model(), tmp_path / "vit"), image_processor(32), *splits, tmp_path, CLS)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"components.png", "attention.png", "neighbors.png"}
    for path in (tmp_path / "figures").iterdir():
        with Image.open(path) as figure:
            assert figure.width > 500 and figure.convert("L").getextrema()[0] < 50
    model = tiny_model(backbone="resnet18", backbone_kwargs={}, image_size=32, objective="dino", auxiliary="convnext")
    (tmp_path / "other").mkdir()
    figures.draw_export(export_backbone(model, tmp_path / "resnet"), image_processor(32), *splits, tmp_path / "other", CLS)
    assert {path.name for path in (tmp_path / "other" / "figures").iterdir()} == {"components.png", "neighbors.png"}


def test_attention_and_components_are_those_of_the_model(splits, tmp_path, monkeypatch, drawn):
    """A model whose last block looks only at one patch: the map is bright there and dark elsewhere."""
    monkeypatch.setattr(parity, "compare", lambda *_: {})
    figures.draw_export(export_backbone(tiny_model(), tmp_path / "vit"), image_processor(32), *splits, tmp_path, CLS)
    rows = drawn["attention.png"]
    assert list(rows) == ["image", "head 1", "head 2"] and rows["head 1"].shape == (8, 8, 8) and rows["head 1"].max() == 1.0
    components = drawn["components.png"]["components"]
    assert components.shape == (8, 8, 8, 3) and components.min() >= 0 and components.max() <= 1
    assert np.std(components, axis=(0, 1, 2)).min() > 0.05, "the three components vary"


def test_neighbors_of_a_training_image_begin_with_itself(tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(parity, "compare", lambda *_: {})
    same = [LabeledImages(Source(str(SAMPLE), split="test"), limit=40)] * 2
    figures.draw_export(export_backbone(tiny_model(), tmp_path / "vit"), image_processor(32), *same, tmp_path, CLS)
    rows = drawn["neighbors.png"]
    assert list(rows) == ["image", *(f"neighbor {number}" for number in range(1, 6))]
    np.testing.assert_array_equal(rows["image"], rows["neighbor 1"])


def test_views_show_hidden_patches_in_gray(tmp_path, drawn):
    config = ViewConfig(global_crop_size=32)
    pixels = (torch.ones(2, 3, 3, 32, 32) - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
    masks = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    masks[0, 1, 2, 3] = True
    views = Views(pixels, None, None, None, masks, None, torch.zeros(2, 3, 5))
    figures.draw_views(views, config, tmp_path / "figures" / "views.png")
    rows = drawn["views.png"]
    assert list(rows) == ["global view 1", "global view 2"]
    first, second = rows.values()
    np.testing.assert_allclose(first[1, 16:24, 24:32], 0.5)
    assert np.isclose(first, 0.5).sum() == 8 * 8 * 3 and np.allclose(second, 1.0, atol=1e-6)


def test_nothing_but_images_is_needed(tmp_path, drawn, monkeypatch):
    """Images of other sizes than the model's pass, as they come."""
    monkeypatch.setattr(parity, "compare", lambda *_: {})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [Image.fromarray(np.full((20 + 7 * n, 50, 3), 20 * n, np.uint8)) for n in range(9)]
    datasets.Dataset.from_dict({"image": images, "label": [0] * 9}, features=features).to_parquet(tmp_path / "train.parquet")
    split = LabeledImages(Source(str(tmp_path / "train.parquet")))
    figures.draw_export(export_backbone(tiny_model(), tmp_path / "vit"), image_processor(32), split, split, tmp_path, CLS)
    assert set(drawn) == {"components.png", "attention.png", "neighbors.png"}
