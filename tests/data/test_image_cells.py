"""Which files and URLs a dataset may name."""

import io

import datasets
import pytest

from hssl_hf.data.image_cells import image_bytes
from hssl_hf.data.loader import DataConfig, epoch_length
from hssl_hf.data.source import Source
from hssl_hf.data.stream import ImageStream
from hssl_hf.evaluation.images import LabeledImages
from tests.data.test_stream import png
from tests.faults import refused


@pytest.fixture
def folder(tmp_path):
    """A dataset's folder with images, and an image beside it that is none of its business."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "data" / "images" / f"{number}.png").write_bytes(png(number))
    (tmp_path / "secret.png").write_bytes(png(99))
    (tmp_path / "database").mkdir()
    (tmp_path / "database" / "x.png").write_bytes(png(98))
    return tmp_path / "data"


def table(folder, paths: list[str], form: str) -> Source:
    """A table of paths, as strings or as cells of images without bytes."""
    if form == "csv":
        (folder / "list.csv").write_text("\n".join(["path,label", *(f'"{path}",0' for path in paths)]))
        return Source(str(folder / "list.csv"), image_column="path")
    if form == "jsonl":
        datasets.Dataset.from_dict({"path": paths, "label": [0] * len(paths)}).to_json(folder / "list.jsonl")
        return Source(str(folder / "list.jsonl"), image_column="path")
    cells = paths if form == "strings" else [{"bytes": None, "path": path} for path in paths]
    cell = (
        {"bytes": datasets.Value("binary"), "path": datasets.Value("string")} if form == "cells" else datasets.Value("string")
    )
    features = datasets.Features({"path": cell, "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict({"path": cells, "label": [0] * len(paths)}, features=features)
    dataset.to_parquet(folder / "train.parquet")
    return Source(str(folder / "train.parquet"), image_column="path")


FORMS = ["strings", "cells", "csv", "jsonl"]


@pytest.mark.parametrize("form", FORMS)
def test_paths_below_the_dataset_are_read(folder, form):
    absolute = [str(folder / "images" / "2.png"), f"file://{folder}/images/3.png"]
    source = table(folder, ["images/0.png", "./images/../images/1.png", *absolute], form)
    images = ImageStream(source, shuffle_buffer_size=1)
    assert [image.data for image, _ in zip(images, range(4), strict=False)] == [png(number) for number in range(4)]


@pytest.mark.fault("paths in a dataset")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "path",
    [
        "{outside}/secret.png",
        "../secret.png",
        "images/../../secret.png",
        "file://{outside}/secret.png",
        "/etc/passwd",
        "{outside}/database/x.png",
        "~/x.png/../../../../../../../../../../etc/passwd",
    ],
)
def test_paths_outside_are_refused(folder, form, path):
    source = table(folder, ["images/0.png", path.format(outside=folder.parent)], form)
    with refused("outside", "data.path", "below the dataset's own folder"):
        list(zip(ImageStream(source, shuffle_buffer_size=1), range(2), strict=False))
    with refused("outside"):
        list(LabeledImages(source))


@pytest.mark.fault("paths in a dataset")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:9/x.png",
        "https://host/x.png",
        "s3://bucket/x.png",
        "zip://x.png::http://127.0.0.1:9/a.zip",
        "simplecache::http://127.0.0.1:9/x.png",
        "http://127.0.0.1:9/x::{folder}/images/0.png",
        "hf://datasets/u/n/x.png",
        "local://{outside}/secret.png",
        "zip://x.png::{outside}/secret.zip",
        "zip://x.png::{folder}/../secret.zip",
    ],
)
def test_urls_are_refused_and_never_opened(folder, form, path):
    source = table(folder, ["images/0.png", path.format(folder=folder, outside=folder.parent)], form)
    with refused("URL", "data.allow_remote_paths"):
        list(zip(ImageStream(source, shuffle_buffer_size=1), range(2), strict=False))


def test_urls_are_opened_where_that_is_allowed(folder, monkeypatch):
    monkeypatch.setattr("hssl_hf.data.image_cells.xopen", lambda path, *_, **__: io.BytesIO(path.encode()))
    allowed = Source(str(folder), allow_remote_paths=True)
    for path in ("https://host/x.png", "zip://x.png::s3://bucket/a.zip"):
        assert image_bytes({"bytes": None, "path": path}, allowed) == path.encode()
        with refused("data.allow_remote_paths"):
            image_bytes({"bytes": None, "path": path}, Source(str(folder)))


@pytest.mark.fault("paths in a dataset")
@pytest.mark.parametrize("path", ["local:///etc/passwd", "zip://x::/etc/x.zip", "memory://x", "simplecache::https://host/x"])
def test_files_of_this_machine_stay_closed_where_urls_are_allowed(folder, path):
    with refused("URL", "https"):
        image_bytes({"bytes": None, "path": path}, Source(str(folder), allow_remote_paths=True))


@pytest.mark.parametrize(
    ("dataset", "path", "is_allowed"),
    [
        ("user/name", "hf://datasets/user/name@main/x.png", True),
        ("user/name", "zip://x.png::hf://datasets/user/name@main/a.zip", True),
        ("user/name", "hf://datasets/user/name@main/../../other/data/x.png", False),
        ("user/name", "hf://datasets/user/name-private@main/x.png", False),
        ("user/name", "hf://datasets/victim/private@main/x.png", False),
        ("user/name", "/etc/passwd", False),
        ("user/name", "relative.png", False),
        ("https://host/a/train.parquet", "https://host/a/x.png", True),
        ("https://host/a/train.parquet", "https://host/b/x.png", False),
        ("https://host/a/train.parquet", "https://host/a/../b/x.png", False),
        ("https://host/a/train.parquet", "https://host/a/%2e%2e/b/x.png", False),
        ("https://host/a/train.parquet", "/etc/passwd", False),
    ],
)
def test_datasets_on_other_machines_name_their_own_files_only(dataset, path, is_allowed, monkeypatch):
    opened = []

    def missing(url, *_, **__):
        opened.append(url)
        raise FileNotFoundError(url)

    monkeypatch.setattr("hssl_hf.data.image_cells.xopen", missing)
    cell = {"bytes": None, "path": path}
    if is_allowed:
        assert image_bytes(cell, Source(dataset)) == b"" and opened == [path]
        return
    with refused("outside"):
        image_bytes(cell, Source(dataset))
    assert not opened


@pytest.mark.fault("paths in a dataset")
@pytest.mark.parametrize("path", ["images/nowhere.png", "images", "images/0.png/x.png", "a\0b", "x" * 5000, ""])
def test_missing_files_of_a_column_of_paths_are_counted(folder, path):
    """As undecodable images, of which `data.max_corrupt_fraction` limits the number."""
    assert image_bytes({"bytes": None, "path": path}, Source(str(folder))) == b""


@pytest.mark.fault("paths in a dataset")
def test_a_column_of_something_else_is_refused(folder):
    table(folder, ["images/0.png"], "strings")
    with refused("'label'", "int64", "expected images"):
        epoch_length(DataConfig(str(folder / "train.parquet"), image_column="label"))
