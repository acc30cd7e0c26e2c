from dataclasses import replace

import numpy as np
import pytest
import torch

from hssl_hf.data.source import Source
from hssl_hf.evaluation.encoder import raw_pixel_encoder
from hssl_hf.evaluation.features import FeatureSet, Representation
from hssl_hf.evaluation.images import LabeledImages
from hssl_hf.evaluation.linear import LinearClassifiers, LinearConfig
from hssl_hf.evaluation.linear_probe import CachedFeatures, cached_probe
from hssl_hf.evaluation.splits import Splits
from tests.conftest import SAMPLE
from tests.evaluation.extractors import accelerator, extractor

SHORT = LinearConfig(epochs=8, batch_size=128, learning_rates=(1e-4, 0.1, 1.0))


def pixels_of(split: str, count: int) -> FeatureSet:
    """Pixels of the first images of the sample."""
    images = LabeledImages(Source(str(SAMPLE), split=split), limit=count)
    return extractor(28).extract(raw_pixel_encoder, images, Representation())


def accuracy_of(train: FeatureSet, test: FeatureSet, config: LinearConfig) -> dict[str, float]:
    result, chosen, *_ = cached_probe(accelerator(), Splits(train, test), config)
    return {"top1": result.accuracy(1), "top5": result.accuracy(5), "n": len(result), **chosen}


def blobs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes in ten dimensions, one of which is a thousand times as wide as the others and carries no information."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    features = torch.randn(count, 10, generator=generator)
    features[:, :3] += 3 * torch.nn.functional.one_hot(labels, 3)
    features[:, 9] = features[:, 9] * 1000 + 500
    return features, labels


def fitted(features, labels, config: LinearConfig) -> LinearClassifiers:
    """Classifiers of all rates, trained on features that are there."""
    classifiers = LinearClassifiers(features.shape[1], 3, config, config.learning_rates)
    classifiers.standardize(features)
    optimizer, training = classifiers.make_optimizer(), CachedFeatures(features, labels, config)
    for epoch in range(config.epochs):
        for number, batch in enumerate(training.epoch()):
            classifiers.train().step(optimizer, *batch, epoch + number / training.steps_per_epoch)
    return classifiers.eval()


def test_classifiers_are_independent():
    """Trained at once or alone, a learning rate gives the same classifier."""
    features, labels = blobs(200)
    config = LinearConfig(epochs=3, batch_size=64, learning_rates=(0.1, 1.0))
    together, alone = fitted(features, labels, config), fitted(features, labels, replace(config, learning_rates=(1.0,)))
    torch.testing.assert_close(together(features)[1], alone(features)[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together(features)[0], together(features)[1], atol=0.1)


def test_learns_what_is_linear_whatever_the_scale_of_a_feature():
    features, labels = blobs(600)
    unseen, truth = blobs(300, seed=1)
    for optimizer, rate in (("sgd", 0.3), ("lars", 30.0)):
        config = LinearConfig(epochs=20, batch_size=64, learning_rates=(rate,), optimizer=optimizer)
        assert fitted(features, labels, config).accuracies(unseen, truth).item() > 90


def test_lars_is_that_of_the_linear_probe_of_mae():
    """Two steps in numpy: of weights the gradient is scaled by .001 |w| / |g|, then momentum .9; of biases it is not."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(32, 5, generator=generator), torch.arange(32) % 3
    config = LinearConfig(learning_rates=(2.0,), optimizer="lars", normalize="none", batch_size=512, rate_changes="epoch")
    classifiers = LinearClassifiers(5, 3, config, (2.0,))
    optimizer, (head,) = classifiers.make_optimizer(), classifiers.heads
    values = {name: value.detach().numpy().copy() for name, value in head.named_parameters()}
    momentum, inputs = dict.fromkeys(values, 0.0), features.numpy()
    for _ in range(2):
        logits = inputs @ values["weight"].T + values["bias"]
        errors = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[labels]
        gradients = {"weight": errors.T @ inputs / 32, "bias": errors.mean(0)}
        gradients["weight"] *= 0.001 * np.linalg.norm(values["weight"]) / np.linalg.norm(gradients["weight"])
        for name, gradient in gradients.items():
            momentum[name] = 0.9 * momentum[name] + gradient
            values[name] = values[name] - 2.0 * 512 / 256 * momentum[name]
        classifiers.step(optimizer, features, labels, epoch=0)
    for name, value in head.named_parameters():
        np.testing.assert_allclose(value.detach().numpy(), values[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({"rate_changes": "epoch"}, {0: 1.0, 0.9: 1.0, 50: 0.5, 50.5: 0.5, 75: (1 - 0.5**0.5) / 2}),
        ({}, {0: 1.0, 25: (1 + 0.5**0.5) / 2, 99.9999: 0.0}),
        ({"warmup_epochs": 10}, {0: 0.0, 5: 0.5, 9.9: 0.99, 10: 1.0, 55: 0.5, 100: 0.0}),
    ],
)
def test_learning_rates_rise_and_fall_by_half_a_cosine(settings, times):
    """DINO and iBOT change it with every epoch; MAE and SiameseIM with every step, after epochs of a linear rise."""
    config = LinearConfig(**settings)
    assert {time: config.rate_factor(time) for time in times} == pytest.approx(times, abs=1e-6)


def test_a_batch_norm_has_no_scale_and_sees_the_batch_while_it_trains():
    config = LinearConfig(normalize="batch_norm", learning_rates=(1.0,))
    classifiers = LinearClassifiers(4, 3, config, (1.0,))
    features = 5 + 3 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    normed = classifiers.train().norm(features)
    expected = (features - features.mean(0)) / (features.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(normed, expected, atol=1e-5, rtol=1e-5)
    assert not list(classifiers.norm.parameters())
    assert not torch.allclose(classifiers.eval().norm(features), expected, atol=0.1), "the running mean has seen one batch"


def test_raw_pixels_are_linear_enough():
    """1,000 training and 200 test images of the sample, where chance is 10 %."""
    train, test = pixels_of("train", 1000), pixels_of("test", 200)
    result = accuracy_of(train, test, SHORT)
    assert result["n"] == 200 and 70 < result["top1"] < 90 < result["top5"]
    assert result["learning_rate"] in (0.1, 1.0) and 60 < result["validation_top1"] < 95, "the small rate learns nothing"
    assert accuracy_of(train, test, SHORT) == result


def test_test_images_choose_nothing():
    """With test labels turned round, the chosen rate and its validation accuracy stay."""
    train, test = pixels_of("train", 300), pixels_of("test", 60)
    before = accuracy_of(train, test, SHORT)
    after = accuracy_of(train, replace(test, labels=9 - test.labels), SHORT)
    assert after["top1"] < before["top1"] - 30
    assert all(after[name] == before[name] for name in ("learning_rate", "validation_top1"))


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rates": ()},
        {"validation_fraction": 1.0},
        {"epochs": 0},
        {"batch_size": 0},
        {"validation_fraction": 0.0},
        {"warmup_epochs": 100},
        {"normalize": "standardize", "augment": True},
        {"batch_size": 1, "normalize": "batch_norm"},
    ],
)
def test_settings_that_train_nothing_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected"):
        LinearConfig(**change)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="1 training images are too few"):
        accuracy_of(pixels_of("train", 1), pixels_of("train", 1), SHORT)
