"""What a path of this machine is taken for."""

import bz2
import gc
import gzip
import lzma
import shutil
from itertools import islice

import datasets
import pytest

from hssl_hf.data.loader import DataConfig, epoch_length
from hssl_hf.data.source import Source, count_images, dataset_fingerprint
from hssl_hf.data.stream import ImageStream
from tests.data.test_image_folder import fill, in_each
from tests.data.test_stream import png, write_parquet
from tests.data.test_tar_shards import write_tar
from tests.faults import refused


def saved(folder, splits: dict[str, int] | int):
    """A dataset or several splits of one, as `save_to_disk` writes them."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})

    def rows(count):
        cells = [{"bytes": png(number), "path": None} for number in range(count)]
        return datasets.Dataset.from_dict({"image": cells, "label": [0] * count}, features=features)

    dataset = rows(splits) if isinstance(splits, int) else datasets.DatasetDict({k: rows(v) for k, v in splits.items()})
    dataset.save_to_disk(str(folder))
    return str(folder)


def test_a_saved_dataset_is_opened_as_such(tmp_path):
    path = saved(tmp_path / "saved", {"train": 5, "test": 3})
    assert [count_images(Source(path, split=split)) for split in (None, "train", "test", "all")] == [5, 5, 3, 8]
    assert {image.data for image in islice(ImageStream(Source(path, split="test")), 3)} == {png(number) for number in range(3)}
    alone = saved(tmp_path / "alone", 4)
    assert count_images(Source(alone)) == 4
    shutil.copytree(alone, tmp_path / "moved")
    assert dataset_fingerprint(Source(alone)) == dataset_fingerprint(Source(str(tmp_path / "moved")))


@pytest.mark.fault("local data")
def test_missing_splits_of_a_saved_dataset_are_refused(tmp_path):
    for splits, split in (({"train": 2}, "test"), ({"test": 2}, None), (2, "test")):
        with refused("split", "train" if split is None else split):
            count_images(Source(saved(tmp_path / str(len(list(tmp_path.iterdir()))), splits), split=split))


@pytest.mark.fault("local data")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves the file open
@pytest.mark.parametrize(("column", "words"), [(None, "columns that are known only"), ("imgae", "imgae")])
def test_the_column_of_a_table_without_types_is_named(tmp_path, column, words):
    fill(tmp_path, *in_each("a"))
    (tmp_path / "list.csv").write_text("\n".join(["image", *in_each("a")]))
    with refused("list.csv", words, "data.image_column"):
        epoch_length(DataConfig(str(tmp_path / "list.csv"), image_column=column))
    gc.collect()


@pytest.mark.fault("local data")
@pytest.mark.parametrize("name", ["list.csv", "shard.tar", "folder/images.parquet"])
def test_a_missing_file_is_no_repository_of_the_hub(name):
    with refused(name, "does not exist"):
        count_images(Source(name))


@pytest.mark.fault("local data")
@pytest.mark.parametrize(("compress", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_compressed_tar_file_is_named(tmp_path, compress, kind, in_folder):
    path = write_tar(tmp_path / "x.tar", {"x.png": png(0)})
    path.write_bytes(compress(path.read_bytes()))
    with refused("x.tar", f"compressed by {kind}", "decompress"):
        count_images(Source(str(tmp_path if in_folder else path)))


@pytest.mark.fault("local data")
@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]"], ids=["cut", "deep", "a list"])
@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
def test_a_damaged_saved_dataset_is_refused(tmp_path, name, content):
    path = saved(tmp_path / "saved", 4)
    (tmp_path / "saved" / name).write_text(content)
    with refused("save_to_disk", path):
        count_images(Source(path))


UNREADABLE = {
    "empty": ({}, "it is empty"),
    "other formats": ({f"{i}.heic": b"x" for i in range(12)} | {f"a/{i}.npy": b"x" for i in range(3)}, "12 .heic"),
    "archives": ({"images.zip": b"PK", "more.rar": b"x"}, "1 .zip"),
    "text": ({"README.md": b"x", "labels.csv": b"a,b\n1,2"}, "1 .csv"),
    "vector graphics": ({"a.svg": b"<svg/>", "b.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n", "c": b"%!PS"}, "1 .eps"),
}


@pytest.mark.fault("local data")
@pytest.mark.parametrize("what", UNREADABLE)
def test_a_folder_without_readable_images_is_refused_with_what_it_has(tmp_path, what):
    files, words = UNREADABLE[what]
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with refused("holds no images", words, "PNG", str(tmp_path)):
        epoch_length(DataConfig(str(tmp_path)))


@pytest.mark.fault("local data")
@pytest.mark.parametrize("name", ["a.zip", "a.csv.gz", "photo.jpg", "a.txt", "a"])
def test_files_of_other_kinds_are_refused_as_such(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with refused("is a file of another kind", ".parquet", name):
        epoch_length(DataConfig(str(tmp_path / name)))


@pytest.mark.fault("local data")
@pytest.mark.parametrize("name", ["nowhere", "nowhere.csv", "a::b", "[x]", "a b", "x" * 300])
def test_paths_that_do_not_exist_are_reported_as_such(tmp_path, name):
    with refused("does not exist"):
        epoch_length(DataConfig(str(tmp_path / name)))


@pytest.mark.fault("local data")
def test_a_path_with_a_null_byte_is_refused():
    with refused("path: expected text in one line", "nul"):
        DataConfig("nul\0")


@pytest.mark.fault("local data")
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("data", [b"", b"\0\1\2", b"PAR1 and nothing else"])
def test_damaged_tables_are_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with refused(name):
        epoch_length(DataConfig(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["a b", "a::b", "[1]", "a*b?", "ü", "{0..3}", "100%", "a#b", "x=y,z", "zip"])
@pytest.mark.parametrize("form", ["images", "parquet", "parquet file", "tar", "csv", "saved"])
def test_folders_of_any_name_are_read(tmp_path, form, name):
    folder = tmp_path / name
    path = folder
    if form == "images":
        fill(folder, *in_each("a", count=6))
    elif form.startswith("parquet"):
        write_parquet(tmp_path / "plain", 6, 1 if form == "parquet file" else 2).rename(folder)
        path = next(folder.iterdir()) if form == "parquet file" else folder
    elif form == "tar":
        write_tar(folder / "x.tar", {f"{number}.png": png(number) for number in range(6)})
    elif form == "csv":
        fill(folder, *in_each("a", count=6))
        path = folder / "list of [images].csv"
        path.write_text("\n".join(["image", *in_each("a", count=6)]))
    else:
        saved(tmp_path / "plain", 6)
        (tmp_path / "plain").rename(folder)
    assert epoch_length(DataConfig(str(path), image_column="image" if form == "csv" else None)) == 6
    assert dataset_fingerprint(Source(str(path)))["fingerprint"]


def test_the_kind_of_which_there_is_most_is_read_and_the_rest_named(tmp_path, caplog):
    fill(tmp_path / "images", *in_each("a"))
    write_tar(tmp_path / "images" / "backup.tar", {"x.png": png(1)})
    write_tar(tmp_path / "shards" / "0.tar", {"x.png": png(1)})
    write_tar(tmp_path / "shards" / "1.tar", {"x.png": png(2), "y.png": png(3)})
    fill(tmp_path / "shards", "overview.png")
    with caplog.at_level("INFO", "hssl_hf"):
        assert epoch_length(DataConfig(str(tmp_path / "images"))) == 10
        assert epoch_length(DataConfig(str(tmp_path / "shards"))) == 3
    assert "1 .tar (backup.tar)" in caplog.text and "1 image file beside the shards (overview.png)" in caplog.text
