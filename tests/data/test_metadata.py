"""Tables beside images: what they hold about files, and about files that are not there."""

import datasets
import pytest

from hssl_hf.data.image_folder import list_images
from hssl_hf.data.loader import DataConfig, epoch_length
from hssl_hf.data.metadata import read_metadata
from hssl_hf.data.source import Source, load_source
from tests.data.test_image_folder import fill
from tests.faults import refused


def write(folder, form: str, files: list, **columns) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table, path = datasets.Dataset.from_dict({"file_name": files, **columns}), str(folder / f"metadata.{form}")
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[form](path)


@pytest.mark.fault("metadata without files")
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("where", [".", "train", "[1] a b/ü=x"])
def test_entries_without_a_file_are_counted_and_named(tmp_path, caplog, form, where):
    """Files that are no images, or behind a link to a folder that is read already, are there."""
    folder = tmp_path / where
    fill(folder, "a/1.png", "a/2.png", "3.png", "4.png", "5.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "b").symlink_to("a")
    files = ["a/1.png", "./a/../3.png", "notes.txt", "b/2.png", "gone.png", "a/4.png", "c/1.png", "1.png", None]
    write(folder, form, files)
    with caplog.at_level("INFO", "hssl_hf"):
        assert epoch_length(DataConfig(str(tmp_path), split="all")) == 5
    name = f"{where}/metadata.{form}".removeprefix("./")
    prefix = f"{where}/".removeprefix("./")
    assert f"; 4 entries of {name} without a file ({prefix}gone.png, {prefix}a/4.png, {prefix}c/1.png, ...)" in caplog.text


@pytest.mark.fault("metadata without files")
@pytest.mark.parametrize("content", [b"", b"\0\1\2", b"{", b"label\n1\n", b"\xff\xfe"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_metadata_that_cannot_be_read_stop_no_training(tmp_path, form, content):
    fill(tmp_path, "a/1.png", "a/2.png", "3.png")
    (tmp_path / f"metadata.{form}").write_bytes(content)
    dataset = load_source(Source(str(tmp_path)))
    summary = dataset.summary()
    assert len(dataset) == 3
    without_rows = form == "csv" or (form == "jsonl" and not content)  # which releases of `datasets` read or not
    assert without_rows or f"1 files of metadata that cannot be read (metadata.{form})" in summary


@pytest.mark.fault("labels of folders")
def test_metadata_that_cannot_be_read_are_refused_where_labels_are_wanted(tmp_path):
    fill(tmp_path, "a/1.png", "a/2.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 and nothing else")
    with refused("metadata.parquet", "cannot be read"):
        load_source(Source(str(tmp_path)), also=["label"])


def test_values_are_those_of_the_column_by_path(tmp_path):
    write(tmp_path / "a", "csv", ["x.png", "y.png"], label=[3, 4])
    write(tmp_path / "b", "jsonl", ["x.png"], label=[5], other=["z"])
    listing = list_images(tmp_path, (".csv", ".jsonl", ".parquet"))
    assert read_metadata(listing, "label") == {"a/x.png": 3, "a/y.png": 4, "b/x.png": 5}
    assert read_metadata(listing, "other") == {"b/x.png": "z"} and read_metadata(listing, "none") == {}
