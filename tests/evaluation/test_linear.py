import pytest
import torch
from transformers import BitImageProcessor

from hssl_hf.data.source import Source
from hssl_hf.evaluation.encoder import raw_pixel_encoder
from hssl_hf.evaluation.features import LabeledImages, extract, image_features
from hssl_hf.evaluation.linear import LinearClassifiers, LinearConfig, linear_accuracy
from tests.conftest import SAMPLE

SHORT = LinearConfig(epochs=8, batch_size=128, learning_rates=(1e-4, 0.1, 1.0))


def pixels_of(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (n, 2352) and labels (n,) of the first images of the sample."""
    processor = BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return extract(raw_pixel_encoder, processor, LabeledImages(Source(str(SAMPLE), split=split), limit=count))


def blobs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes in ten dimensions, one of which is a thousand times as wide as the others and carries no information."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    features = torch.randn(count, 10, generator=generator)
    features[:, :3] += 3 * torch.nn.functional.one_hot(labels, 3)
    features[:, 9] = features[:, 9] * 1000 + 500
    return features, labels


def test_classifiers_are_independent():
    """Trained at once or alone, a learning rate gives the same classifier."""
    features, labels = blobs(200)
    config = LinearConfig(epochs=3, batch_size=64, learning_rates=(0.1, 1.0))
    together = LinearClassifiers(features, 3, config)
    alone = LinearClassifiers(features, 3, LinearConfig(epochs=3, batch_size=64, learning_rates=(0.1,)))
    together.fit(features, labels), alone.fit(features, labels)
    torch.testing.assert_close(together(features)[0], alone(features)[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together(features)[0], together(features)[1], atol=0.1)


def test_learns_what_is_linear_whatever_the_scale_of_a_feature():
    features, labels = blobs(600)
    classifiers = LinearClassifiers(features, 3, LinearConfig(epochs=20, batch_size=64, learning_rates=(0.3,)))
    classifiers.fit(features, labels)
    unseen, truth = blobs(300, seed=1)
    assert (classifiers(unseen)[0].argmax(-1) == truth).float().mean() > 0.9


def test_raw_pixels_are_linear_enough():
    """1,000 training and 200 test images of the sample, where chance is 10 %."""
    train, test = pixels_of("train", 1000), pixels_of("test", 200)
    result = linear_accuracy(train, test, SHORT)
    assert result["n"] == 200 and 70 < result["top1"] < 90 < result["top5"]
    assert result["learning_rate"] in (0.1, 1.0) and 60 < result["validation_top1"] < 95, "the small rate learns nothing"
    assert linear_accuracy(train, test, SHORT) == result


def test_test_images_choose_nothing():
    """With test labels turned round, the chosen rate and its validation accuracy stay."""
    train, (features, labels) = pixels_of("train", 300), pixels_of("test", 60)
    before = linear_accuracy(train, (features, labels), SHORT)
    after = linear_accuracy(train, (features, 9 - labels), SHORT)
    assert after["top1"] < before["top1"] - 30
    assert all(after[name] == before[name] for name in ("learning_rate", "validation_top1"))


def test_kinds_of_features():
    cls, patches = torch.randn(2, 6), torch.randn(2, 3, 4, 6) * 5 + 1
    assert image_features(cls, patches, "cls") is cls
    mean = patches.flatten(1, 2).mean(1)
    expected = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(image_features(cls, patches, "patches"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"learning_rates": ()}, {"validation_fraction": 1.0}, {"epochs": 0}, {"batch_size": 0}])
def test_settings_that_train_nothing_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected"):
        LinearConfig(**change)


def test_too_few_images_and_foreign_labels_are_refused():
    with pytest.raises(ValueError, match="1 training images do not divide"):
        linear_accuracy(pixels_of("train", 1), pixels_of("train", 1), SHORT)
    with pytest.raises(ValueError, match="the test images have label 9, the training images only 0 to"):
        linear_accuracy(pixels_of("train", 4), pixels_of("test", 60), LinearConfig(epochs=1, validation_fraction=0.3))
