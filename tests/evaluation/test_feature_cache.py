"""What is kept depends on everything that features depend on; a disk that fails loses nothing but time."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from hssl_hf.data.source import Source
from hssl_hf.evaluation.encoder import load_encoder
from hssl_hf.evaluation.feature_cache import FEATURES, FeatureCache, weights_fingerprint
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.images import LabeledImages, warn_once
from hssl_hf.publish.export import export_backbone
from tests.conftest import tiny_model
from tests.data.test_stream import png, write_parquet
from tests.evaluation.extractors import extractor, processor

CLS = Representation()


@pytest.fixture
def encoder(tmp_path, unchecked):
    return load_encoder(export_backbone(tiny_model(), tmp_path / "export"))[0]


@pytest.fixture
def images(tmp_path):
    return LabeledImages(Source(str(write_parquet(tmp_path / "data", 9, 2))))


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(1.0, tmp_path / "cache")


def calls_of(encoder, monkeypatch) -> list:
    calls, plain = [], type(encoder).forward
    monkeypatch.setattr(type(encoder), "forward", lambda self, pixels: calls.append(len(pixels)) or plain(self, pixels))
    return calls


def test_a_second_extraction_reads_what_the_first_has_kept(encoder, images, cache, monkeypatch):
    calls = calls_of(encoder, monkeypatch)
    first = extractor(32, cache).extract(encoder, images, CLS)
    second = extractor(32, cache).extract(encoder, images, CLS)
    assert len(calls) == 1
    for name in ("features", "labels", "positions", "checksums"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.classes == second.classes


def test_whatever_features_depend_on_is_part_of_the_key(encoder, images, cache, tmp_path):
    """A model under the same name with other weights is another one."""
    runner = extractor(32, cache)
    changed = deepcopy(encoder)
    with torch.no_grad():
        next(changed.parameters()).flatten()[0] += 1e-6

    def key(encoder=encoder, images=images, representation=CLS, processor=runner.processor, **config):
        return cache.entry(encoder, processor, images, representation, replace(runner.config, **config)).key

    other_data = write_parquet(tmp_path / "data2", 9, 2)
    keys = [
        key(),
        key(encoder=changed),
        key(processor=processor(48)),
        key(representation=Representation("patches")),
        key(mixed_precision="bf16"),
        key(images=LabeledImages(images.source, limit=5)),
        key(images=LabeledImages(images.source, limit_per_class=2)),
        key(images=LabeledImages(replace(images.source, label_column="other"))),
    ]
    assert len(set(keys)) == len(keys) and changed.name == encoder.name
    assert key(images=LabeledImages(Source(str(images.source.path)))) == keys[0]
    assert key(images=LabeledImages(Source(str(other_data)))) != keys[0], "another folder of the same content by another name"
    assert key(batch_size=3, num_workers=2) == keys[0]


def test_changed_images_are_noticed(encoder, tmp_path, cache):
    for label in "ab":
        (tmp_path / "folder" / label).mkdir(parents=True)
        (tmp_path / "folder" / label / "image.png").write_bytes(png(1))
    images = LabeledImages(Source(str(tmp_path / "folder")))
    first = extractor(32, cache).extract(encoder, images, CLS)
    (tmp_path / "folder" / "a" / "image.png").write_bytes(png(200))
    second = extractor(32, cache).extract(encoder, images, CLS)
    assert not torch.equal(first.features, second.features)


def test_what_was_left_out_is_named_again(encoder, tmp_path, cache, caplog):
    """By another process too, which reads the features that are kept."""
    for label in "ab":
        (tmp_path / "folder" / label).mkdir(parents=True)
        (tmp_path / "folder" / label / "image.png").write_bytes(png(1))
    (tmp_path / "folder" / "b" / "broken.png").write_bytes(b"no image")
    for _ in range(2):
        warn_once.cache_clear()
        caplog.clear()
        extractor(32, cache).extract(encoder, LabeledImages(Source(str(tmp_path / "folder"))), CLS)
        assert "1 that cannot be decoded" in caplog.text and "broken.png" in caplog.text


@pytest.mark.fault("cache")
@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_damaged_features_are_computed_again(encoder, images, cache, damage, caplog):
    expected = extractor(32, cache).extract(encoder, images, CLS)
    (path,) = cache.folder.rglob(FEATURES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "bit": content, "empty": b""}[damage])
    result = extractor(32, cache).extract(encoder, images, CLS)
    assert torch.equal(result.features, expected.features) and "damaged" in caplog.text


@pytest.mark.fault("cache")
def test_a_disk_that_cannot_be_written_loses_nothing_but_time(encoder, images, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    result = extractor(32, FeatureCache(1.0, tmp_path / "cache")).extract(encoder, images, CLS)
    assert len(result) == 9 and "features are not kept" in caplog.text


def test_what_was_not_used_for_longest_is_removed(encoder, images, cache):
    first = extractor(32, cache).extract(encoder, images, CLS)
    size = sum(entry["gib"] for entry in cache.entries())
    cache.limit = 1.5 * size * 2**30
    extractor(48, cache).extract(encoder, images, CLS)
    (entry,) = cache.entries()
    assert entry["complete"] and entry["gib"] == pytest.approx(size, rel=0.1)
    cache.limit = 1
    assert len(extractor(64, cache).extract(encoder, images, CLS)) == len(first)
    cache.limit = 2**30
    assert cache.clear() > 0 and not cache.entries()


def test_the_fingerprint_is_of_values_not_of_names(encoder):
    same = deepcopy(encoder)
    assert weights_fingerprint(same) == weights_fingerprint(encoder)
    same.network.config.num_attention_heads = 1
    assert weights_fingerprint(same) != weights_fingerprint(encoder)
