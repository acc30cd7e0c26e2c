"""Sources on other machines: a web server on this one, which fails in the usual ways."""

import io
import re
import tarfile
from collections import Counter
from itertools import islice, takewhile

import datasets
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants
from hypothesis import given, settings
from hypothesis import strategies as st

from hssl_hf.data.loader import DataConfig, epoch_length
from hssl_hf.data.remote import expand_braces
from hssl_hf.data.source import Source, StreamError, count_images, dataset_fingerprint, load_source
from hssl_hf.data.stream import ImageStream
from hssl_hf.evaluation.encoder import load_encoder
from hssl_hf.evaluation.images import LabeledImages
from tests.data.test_stream import png, write_parquet
from tests.data.test_tar_shards import NAMES, numbered, write_tar
from tests.faults import refused
from tests.http_server import FaultyServer
from tests.hub_server.server import TOKEN, HubServer

RETRIES = [name for name in dir(datasets.config) if name.startswith("STREAMING_") and name.endswith("INTERVAL")]


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("hssl_hf.data.remote.STALL_SECONDS", 0.5)
    monkeypatch.setattr("hssl_hf.data.shard_reader.BACKOFF_SECONDS", 0)
    for name in RETRIES:
        monkeypatch.setattr(datasets.config, name, 0)
    write_parquet(tmp_path, images=60, shards=3)
    for shard in range(3):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as tar:
            for image in range(20 * shard, 20 * shard + 20):
                entry = tarfile.TarInfo(f"{image}.png")
                entry.size = len(png(image))
                tar.addfile(entry, io.BytesIO(png(image)))
    server = FaultyServer(tmp_path)
    yield server
    server.close()


def source(server, form: str) -> Source:
    name = "train-{00000..00002}-of-00003.parquet" if form == "parquet" else "train-{0..2}.tar"
    return Source(f"{server.url}/{name}")


def stream(server, form: str) -> ImageStream:
    return ImageStream(source(server, form), shuffle_buffer_size=16)


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_a_web_server_is_read_and_resumed(server, form):
    expected = [image.data for image in islice(stream(server, form), 100)]
    assert Counter(expected[:60]) == Counter(png(i) for i in range(60))
    for stop in (0, 7, 33, 75):
        stopped, again = stream(server, form), stream(server, form)
        assert [image.data for image in islice(stopped, stop)] == expected[:stop]
        again.load_state_dict(stopped.state_dict())
        assert [image.data for image in islice(again, 100 - stop)] == expected[stop:]


@pytest.mark.parametrize("form", ["parquet", "tar"])
@pytest.mark.parametrize("fault", [429, 500, 503, "drop", "stall"])
@pytest.mark.filterwarnings("ignore:reading shard")
def test_a_server_that_fails_for_a_while_loses_nothing(server, form, fault):
    images = stream(server, form)
    server.faults = [fault] * 3
    seen = [image.data for image in takewhile(lambda image: image.epoch == 0, images)]
    assert server.met == [fault] * 3 and Counter(seen) == Counter(png(i) for i in range(60))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine, with a repository of datasets."""
    with HubServer() as server:
        for module, name, value in (
            (constants, "HF_HUB_OFFLINE", False),
            (constants, "ENDPOINT", server.url),
            (constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"),
            (constants, "HF_HUB_CACHE", str(tmp_path / "hub")),
            (datasets.config, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_ENDPOINT", server.url),
            (datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets"),
        ):
            monkeypatch.setattr(module, name, value)
        yield HfApi(endpoint=server.url, token=TOKEN)


def upload_shards(hub, tmp_path, *shards: list[str], readme: str = "") -> list[bytes]:
    """Make a repository of tar shards with members of these names; returns their images."""
    contents = [numbered([f"{shard}{name}" for name in names]) for shard, names in enumerate(shards)]
    paths = [write_tar(tmp_path / "up" / f"train-{shard}.tar", files) for shard, files in enumerate(contents)]
    operations = [CommitOperationAdd(path.name, path.read_bytes()) for path in paths]
    hub.create_repo("user/shards", repo_type="dataset")
    operations += [CommitOperationAdd("README.md", readme.encode())] if readme else []
    hub.create_commit("user/shards", operations, commit_message="shards", repo_type="dataset")
    return [data for files in contents for name, data in files.items() if data.startswith(b"\x89PNG")]


@pytest.mark.fault("tar shards")
@pytest.mark.parametrize("streaming", [True, False])
def test_every_image_of_shards_on_the_hub_is_read(hub, tmp_path, streaming):
    """Also those that `datasets` drops: of other fields than the first five samples have, without a suffix, hidden."""
    images = upload_shards(hub, tmp_path, ["a.png", "b.png", "c.png", "d.png", "e.png"], *NAMES.values())
    source = Source("user/shards", streaming=streaming)
    stream = ImageStream(source, shuffle_buffer_size=1)
    read = [image.data for image in takewhile(lambda image: image.epoch == 0, stream)]
    assert Counter(read) == Counter(images)
    assert re.fullmatch("[0-9a-f]{40}", dataset_fingerprint(source)["revision"])
    if not streaming:
        assert count_images(source) == len(images)


def test_shards_on_the_hub_have_what_their_readme_declares(hub, tmp_path):
    """The number of samples, and names of classes."""
    names = [name for number in range(4) for name in (f"{number}.png", f"{number}.cls")]
    upload_shards(hub, tmp_path, names, names, readme=README)
    source = Source("user/shards", label_column="cls", classes=str(tmp_path / "classes.txt"))
    (tmp_path / "classes.txt").write_text("test tube")
    assert [label for _, label in LabeledImages(source)] == [1] * 8  # the content of every .cls
    assert epoch_length(DataConfig("user/shards")) == 8
    assert load_source(Source("user/shards")).summary() == "8 samples in 2 tar shards on other machines"
    with refused("user/shards", "'test'", "train"):
        ImageStream(Source("user/shards", split="test"))


README = """---
dataset_info:
  features:
  - {name: png, dtype: image}
  - {name: cls, dtype: {class_label: {names: {"0": tench, "1": test tube}}}}
  splits:
  - {name: train, num_examples: 8, num_bytes: 1}
---
"""


@settings(max_examples=50)
@given(st.integers(0, 300), st.integers(0, 30), st.integers(1, 5))
def test_ranges_of_urls(first, count, digits):
    urls = expand_braces(f"https://host/a-{{{first:0{digits}d}..{first + count:0{digits}d}}}.tar")
    assert urls == [f"https://host/a-{number:0{digits}d}.tar" for number in range(first, first + count + 1)]


@pytest.mark.fault("urls")
@pytest.mark.parametrize("numbers", ["0..99999999", "0..100000", "1..1" + "0" * 30])
def test_endless_ranges_of_urls_are_refused(numbers):
    with refused("data.path", "100000 URLs", numbers[-9:]):
        expand_braces(f"https://host/{{{numbers}}}.tar")


def test_urls_of_something_else_are_refused(server):
    with pytest.raises(StreamError, match="expected a URL of parquet files or tar shards"):
        ImageStream(Source(f"{server.url}/train.zip"))
    with pytest.raises(StreamError, match=r"cannot open data\.path="):
        ImageStream(Source(f"{server.url}/nowhere.parquet"))


@pytest.mark.parametrize("path", ["user/../../secret", "user/name/../..", "us er/name", "user//name"])
def test_ids_outside_their_folder_are_refused(path):
    with pytest.raises(StreamError, match=r"cannot open data\.path="):
        ImageStream(Source(path))
    with pytest.raises(ValueError, match="an exported folder"):
        load_encoder(path)
