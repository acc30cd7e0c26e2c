"""Every image of a folder is read once, whatever its files and folders are called and linked."""

import os
import shutil
from collections import Counter
from itertools import islice, takewhile
from pathlib import Path

import pytest

from hssl_hf.data.image_cells import image_bytes
from hssl_hf.data.image_folder import ImageFolder, list_images
from hssl_hf.data.loader import DataConfig, epoch_length
from hssl_hf.data.source import Source, count_images, dataset_fingerprint, load_source
from hssl_hf.data.stream import ImageStream
from hssl_hf.evaluation.images import LabeledImages
from tests.data.test_stream import png
from tests.faults import refused


def fill(root: Path, *names: str) -> Path:
    """Write images, each with other pixels; parts of a name that are bytes are taken as they are."""
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        fill.count += 1
        path.write_bytes(png(fill.count))
    return root


fill.count = 0


def in_each(*folders: str, count: int = 10) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in range(count)]


def classes_named_like_splits(root):
    fill(root, *in_each("bicycle", "bus", "car", "train"))


def class_named_test_tube(root):
    fill(root, *in_each("test tube", "beaker", "val ve"))


def flat_folder_with_a_train(root):
    fill(root, "steam train.jpg", "train.png", "test.png", "val-1.png", "a.png")


def odd_names(root):
    fill(
        root, "a::b/c::d.png", "[1]/x[2].png", "*/?.png", " space /  .png", "%20/#.png", "zip:/x.png", "новая/図.png", "-/-.png"
    )
    fill(root, "new\nline/tab\t.png", ".hidden/.dot.png", "__init__/__x__.png", "{0..9}/a.png", "a=b/c,d.png", "~/x.png")


def names_that_are_not_utf_8(root):
    fill(root, b"caf\xe9/\xff\xfe.png", b"caf\xe9/ok.png", "ok/ok.png")


def suffixes(root):
    fill(root, "a.PNG", "b.Jpeg", "c.jfif", "d", "e.1", "f.png.bak", "g.jpe", "00001", "h.jpg_large")


def linked_classes(root):
    outside = fill(root.parent / "outside", *in_each("cat", "dog", "deep/er"))
    root.mkdir()
    for name in ("cat", "dog", "deep"):
        (root / f"link to {name}").symlink_to(outside / name)


def loops(root):
    fill(root, *in_each("a", "b/c"))
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(".")
    (root / "b" / "c" / "cross").symlink_to(root / "a")
    (root / "a" / "cross").symlink_to(root / "b")
    (root / "out").symlink_to(root.parent)
    (root / "0 before a").symlink_to(root / "a")


def half_listed_in_metadata(root):
    fill(root, *in_each("a", "b"))
    (root / "metadata.csv").write_text("file_name,label\n" + "".join(f"a/{i}.png,{i}\n" for i in range(10)))


def beside_other_files(root):
    fill(root, *in_each("a"), "._x.png", "a/._0.png")
    for name in ("a/0.txt", "a/0.json", "backup.tar", "table.parquet", "x.npy", "README.md"):
        (root / name).write_bytes(b"no image")
    (root / "broken.png").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.png")


FOLDERS = {
    classes_named_like_splits: 40, class_named_test_tube: 30, flat_folder_with_a_train: 5, odd_names: 14,
    names_that_are_not_utf_8: 3, suffixes: 9, linked_classes: 30, loops: 20, half_listed_in_metadata: 20,
    beside_other_files: 10,
}  # fmt: skip


def on_disk(folder: Path) -> list[bytes]:
    """Contents of all images, without links: fill() makes each of them another one."""
    files = [Path(where, name) for where, _, names in os.walk(folder) for name in names if not name.startswith("._")]
    contents = [path.read_bytes() for path in files if path.is_file() and not path.is_symlink()]
    return sorted(content for content in contents if content.startswith(b"\x89PNG"))


@pytest.mark.fault("folders of images")
@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_as_many_images_are_read_as_are_on_disk(tmp_path, make):
    root = tmp_path / "root"
    make(root)
    expected, source = on_disk(tmp_path), Source(str(root))
    assert len(expected) == FOLDERS[make]
    images = list(takewhile(lambda image: image.epoch == 0, ImageStream(source, shuffle_buffer_size=4)))
    assert sorted(image.data for image in images) == expected
    assert count_images(source) == len(expected)


def test_the_count_is_reported_at_the_start(tmp_path, caplog):
    classes_named_like_splits(tmp_path)
    with caplog.at_level("INFO", "hssl_hf"):
        assert epoch_length(DataConfig(str(tmp_path))) == 40
        assert epoch_length(DataConfig(str(tmp_path), split="train")) == 10
    assert "40 images in 4 folders, 0 left out; folders named like splits (train) are read as folders" in caplog.text
    assert "10 images in 1 folders, 0 left out; 30 images of other splits; split 'train'" in caplog.text


def test_what_is_left_out_is_named(tmp_path):
    beside_other_files(tmp_path / "root")
    loops(tmp_path / "loops")
    summary = load_source(Source(str(tmp_path / "root"))).summary()
    assert summary.startswith("10 images in 1 folders, 10 left out: ")
    for part in ("2 .png (._x.png, a/._0.png)", "1 .npy (x.npy)", "1 broken links (broken.png)", "1 special files (pipe.png)"):
        assert part in summary
    assert "6 links to a folder that is read already" in load_source(Source(str(tmp_path / "loops"))).summary()


def test_links_to_images_are_images(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "b" / "1.png").symlink_to("../a/1.png")
    assert count_images(Source(str(tmp_path))) == 3


def test_what_git_keeps_is_no_second_copy_of_the_images(tmp_path):
    fill(tmp_path, "a/1.png", ".git/lfs/objects/1")
    assert "1 images in 1 folders, 1 left out: 1 folders of git (.git)" in load_source(Source(str(tmp_path))).summary()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    fill(tmp_path, *in_each("a", "secret"))
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert "1 folders that cannot be read: Permission denied (secret)" in load_source(Source(str(tmp_path))).summary()


def test_the_order_is_fixed_and_mixes_the_folders(tmp_path):
    fill(tmp_path / "one", *in_each("a", "b", "c", "d", count=25))
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    def order(root):
        return [os.path.relpath(row["image"]["path"], root) for row in load_source(Source(str(root)))]

    first = order(tmp_path / "one")
    assert first == order(tmp_path / "two") and len(set(first)) == 100
    assert {name[0] for name in first[:20]} == set("abcd")


def test_the_fingerprint_follows_the_content_not_the_place(tmp_path):
    fill(tmp_path / "one", *in_each("a", "b"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first, second = (dataset_fingerprint(Source(str(tmp_path / name))) for name in ("one", "two"))
    (tmp_path / "two" / "a" / "0.png").write_bytes(png(999))
    assert first == second != dataset_fingerprint(Source(str(tmp_path / "two")))


@pytest.mark.parametrize("workers", [1, 3, 7])
@pytest.mark.parametrize("stop", [0, 5, 17])
def test_a_folder_is_divided_and_resumed(tmp_path, workers, stop):
    fill(tmp_path, *in_each("a", "b"))
    names = []
    for rank in range(workers):
        stream = ImageStream(Source(str(tmp_path)), rank=rank, world_size=workers, shuffle_buffer_size=4)
        expected = list(islice(stream, 30))
        stopped, again = (
            ImageStream(Source(str(tmp_path)), rank=rank, world_size=workers, shuffle_buffer_size=4) for _ in "12"
        )
        assert list(islice(stopped, stop)) == expected[:stop]
        again.load_state_dict(stopped.state_dict())
        assert list(islice(again, 30 - stop)) == expected[stop:]
        names += [image.name for image in expected if image.epoch == 0]
    assert Counter(names) == Counter(str(tmp_path / name) for name in in_each("a", "b"))


def labels(root, **changes) -> dict[str, int]:
    dataset = load_source(Source(str(root), **changes), also=["label"])
    return {os.path.relpath(row["image"]["path"], root): row["label"] for row in dataset}


def test_folders_are_classes_with_the_same_numbers_in_every_split(tmp_path):
    fill(tmp_path, "train/cat/1.png", "train/dog/1.png", "train/ant/x/1.png", "val/dog/2.png")
    assert labels(tmp_path) == {"train/cat/1.png": 0, "train/dog/1.png": 1, "train/ant/x/1.png": 2}
    assert labels(tmp_path, split="val") == {"val/dog/2.png": 1}
    assert load_source(Source(str(tmp_path)), also=["label"]).features["label"].names == ["cat", "dog", "x"]
    assert [label for _, label in LabeledImages(Source(str(tmp_path), split="val"))] == [1]


@pytest.mark.parametrize(("values", "expected"), [("7,3", (7, 3)), ("owl,bee", (1, 0))])
def test_labels_of_metadata(tmp_path, values, expected):
    fill(tmp_path, "a/1.png", "a/2.png")
    first, second = values.split(",")
    (tmp_path / "a" / "metadata.csv").write_text(f"file_name,label\n1.png,{first}\n2.png,{second}\n")
    assert labels(tmp_path) == {"a/1.png": expected[0], "a/2.png": expected[1]}


@pytest.mark.fault("labels of folders")
@pytest.mark.parametrize(
    ("make", "words"), [(half_listed_in_metadata, "10 of 20"), (flat_folder_with_a_train, "folder of a class")]
)
def test_images_without_a_label_are_refused_where_labels_are_wanted(tmp_path, make, words):
    make(tmp_path)
    with refused(words, "metadata"):
        load_source(Source(str(tmp_path)), also=["label"])


def test_a_million_names_take_little_memory(tmp_path):
    """The names of a folder are one string of bytes, and an order is numbers."""
    fill(tmp_path, *in_each("a", count=200))
    folder = ImageFolder(list_images(tmp_path))
    (only,) = folder.folders
    assert isinstance(only.files, bytes) and only.ends.nbytes + folder._order.nbytes == 16 * 200


def test_an_image_that_vanishes_is_an_undecodable_one(tmp_path):
    fill(tmp_path, "a/1.png", "a/2.png")
    source = Source(str(tmp_path))
    rows = list(load_source(source))
    (tmp_path / "a" / "1.png").unlink()
    assert sorted(image_bytes(row["image"], source)[:4] for row in rows) == [b"", b"\x89PNG"]
