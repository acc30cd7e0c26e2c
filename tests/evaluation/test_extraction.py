"""The runner: every image once, in order, whatever computes it; interrupted, it goes on."""

import json
import os

import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor

from hssl_hf.cli.main import main
from hssl_hf.data.errors import StreamError
from hssl_hf.data.source import Source
from hssl_hf.evaluation.encoder import raw_pixel_encoder
from hssl_hf.evaluation.extraction import ExtractionConfig, Extractor
from hssl_hf.evaluation.feature_cache import FeatureCache
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.images import LabeledImages
from hssl_hf.publish.export import export_backbone
from tests.conftest import SAMPLE, tiny_model
from tests.data.test_stream import write_parquet
from tests.evaluation.extractors import accelerator, extractor, processor
from tests.faults import refused
from tests.processes import run_pair

CLS = Representation()


@pytest.fixture
def images(tmp_path):
    return LabeledImages(Source(str(write_parquet(tmp_path / "data", 23, 3))))


def test_features_follow_the_order_of_the_images(images):
    """Image i of the files is a gray of i, and its label i % 2."""
    result = extractor(4, batch_size=4).extract(raw_pixel_encoder, images, CLS)
    assert result.labels.tolist() == [i % 2 for i in range(23)] and result.features.shape == (23, 48)
    assert (result.features[1:, 0] > result.features[:-1, 0]).all()


@pytest.mark.parametrize("config", [{"num_workers": 2}, {"batch_size": 1}, {"batch_size": 5, "num_workers": 2}])
def test_batches_and_workers_change_nothing(images, config):
    expected = extractor(4).extract(raw_pixel_encoder, images, CLS)
    result = extractor(4, **config).extract(raw_pixel_encoder, images, CLS)
    for name in ("features", "labels", "positions", "checksums"):
        assert torch.equal(getattr(result, name), getattr(expected, name))


def test_an_interrupted_extraction_continues(images, tmp_path, monkeypatch):
    """Interrupted after 12 images, the second call encodes the other 11."""
    monkeypatch.setattr("hssl_hf.evaluation.extraction.PART_IMAGES", 4)
    encoded, cache = [], FeatureCache(1.0, tmp_path / "cache")

    def encoder(pixels):
        encoded.append(len(pixels))
        if len(encoded) == 4:
            raise KeyboardInterrupt
        return raw_pixel_encoder(pixels)

    runner = extractor(4, cache, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        runner.extract(encoder, images, CLS)
    result = runner.extract(encoder, images, CLS)
    assert encoded == [4] * 6 + [3] and not list((tmp_path / "cache").rglob("part-*"))
    assert torch.equal(result.features, extractor(4).extract(raw_pixel_encoder, images, CLS).features)
    assert torch.equal(runner.extract(encoder, images, CLS).features, result.features) and len(encoded) == 7


def test_a_stop_leaves_no_features(images):
    stopping = Extractor(accelerator(), processor(4), ExtractionConfig(num_workers=0, cache=False), stop=lambda: True)
    assert stopping.extract(raw_pixel_encoder, images, CLS) is None


@pytest.mark.fault("labels")
def test_an_error_of_a_worker_is_one_for_users(tmp_path):
    """Not the text of a traceback."""
    folder = write_parquet(tmp_path / "data", 5, 1)
    with pytest.raises(StreamError, match="no column 'klass'") as error:
        extractor(4, num_workers=1).extract(raw_pixel_encoder, LabeledImages(Source(str(folder), label_column="klass")), CLS)
    assert "Traceback" not in str(error.value)


@pytest.mark.fault("images")
def test_images_of_several_sizes_are_refused(tmp_path):
    for label, width in (("a", 8), ("b", 16)):
        (tmp_path / label).mkdir()
        Image.new("RGB", (width, 8)).save(tmp_path / label / "image.png")
    uncropped = BitImageProcessor(size={"shortest_edge": 8}, do_center_crop=False)
    runner = Extractor(accelerator(), uncropped, ExtractionConfig(num_workers=0, cache=False))
    with refused("different sizes", "crop"):
        runner.extract(raw_pixel_encoder, LabeledImages(Source(str(tmp_path))), CLS)


@pytest.mark.fault("figures that mean nothing")
def test_an_encoder_without_finite_features(images):
    with refused("23 of 23 images", "not numbers"):
        extractor(4).extract(lambda pixels: (pixels.flatten(1) * torch.nan, None), images, CLS)


def evaluate(rank: int, port: int, processes: int, commands: list[list[str]], results) -> None:
    """Commands in one of several processes."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()} | {"MASTER_ADDR": "127.0.0.1"}
    results[rank] = [main(command) for command in commands]


def test_two_processes_give_the_figures_of_one(tmp_path, unchecked):
    """Every image once: 201 training and 101 test images do not divide by two; the same records but for the date."""
    export = export_backbone(tiny_model(image_size=32), tmp_path / "export")
    settings = [f"data.path={SAMPLE}", "data.train_images=201", "data.test_images=101", "extraction.cache=false"]
    settings += ["extraction.num_workers=0", "knn.num_neighbors=[5, 20]", "linear.epochs=3"]
    commands, records = [], []
    for processes in (1, 2):
        of_processes = ["--results", str(tmp_path / f"{processes}.jsonl"), "--no-baselines"]
        commands.append([["evaluate", str(export), protocol, *settings, *of_processes] for protocol in ("knn", "linear")])
    assert [main(command) for command in commands[0]] == [0, 0]
    assert run_pair(evaluate, 2, commands[1]) == {0: [0, 0], 1: [0, 0]}
    for processes in (1, 2):
        lines = [json.loads(line) for line in (tmp_path / f"{processes}.jsonl").read_text().splitlines()]
        records.append([(line["metric"], line["settings"], line["value"], line["interval"], line["n"]) for line in lines])
    assert records[0] == records[1] and [line[-1] for line in records[0]] == [101] * 7
