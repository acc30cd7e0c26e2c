"""What stands for an image."""

import pytest
import torch

from hssl_hf.data.source import Source
from hssl_hf.evaluation.encoder import load_encoder
from hssl_hf.evaluation.features import FeatureSet, Representation, image_features
from hssl_hf.publish.export import export_backbone
from tests.conftest import tiny_model
from tests.faults import refused


def test_kinds_of_features():
    cls, patches = torch.randn(2, 6), torch.randn(2, 3, 4, 6) * 5 + 1
    assert image_features(cls, patches, "cls") is cls
    mean = patches.flatten(1, 2).mean(1)
    expected = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(image_features(cls, patches, "patches"), expected, atol=1e-5, rtol=1e-5)
    both = image_features(cls, patches, "cls_and_patches")
    torch.testing.assert_close(both, torch.cat([cls, mean], dim=1))


def test_vectors_of_the_last_blocks_are_concatenated(tmp_path, unchecked):
    encoder = load_encoder(export_backbone(tiny_model(), tmp_path / "export"))[0]
    pixels = torch.randn(2, 3, 32, 32)
    outputs = encoder.forward_intermediates(pixels, [0, 1])
    expected = torch.cat([cls for cls, _ in outputs], dim=1)
    torch.testing.assert_close(Representation(blocks=2)(encoder, pixels), expected)
    torch.testing.assert_close(Representation()(encoder, pixels), outputs[1][0])
    with refused("has 2 blocks", "representation.blocks=3"):
        Representation(blocks=3)(encoder, pixels)


def test_images_in_any_order_and_twice_are_put_in_order():
    keys = torch.tensor([[1, 0, 30], [0, 1, 20], [0, 0, 10], [0, 1, 20]])
    features = torch.tensor([[3.0], [2.0], [1.0], [2.0]])
    result = FeatureSet.joined(features, ["c", "b", "a", "b"], None, keys, Source("folder"))
    assert result.features.flatten().tolist() == [1, 2, 3] and result.labels.tolist() == [0, 1, 2]
    assert result.checksums.tolist() == [10, 20, 30] and result.positions.tolist() == [[0, 0], [0, 1], [1, 0]]


@pytest.mark.fault("figures that mean nothing")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite(value):
    keys = torch.arange(9).view(3, 3)
    with refused("2 of 3 images", "not numbers"):
        FeatureSet.joined(torch.tensor([[1.0], [value], [value]]), [0, 1, 2], None, keys, Source("folder"))
