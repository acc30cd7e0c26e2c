"""Tar shards of every naming, complete and damaged."""

import io
import tarfile
from collections import Counter
from itertools import islice, takewhile

import pytest

from hssl_hf.data.loader import DataConfig, epoch_length
from hssl_hf.data.source import Source, count_images, load_source
from hssl_hf.data.stream import ImageStream
from hssl_hf.data.tar_shards import read_members
from hssl_hf.evaluation.images import LabeledImages
from tests.data.test_stream import png
from tests.faults import refused


def write_tar(path, files: dict[str, bytes], form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def numbered(names: list[str]) -> dict[str, bytes]:
    return {name: png(number) if not name.endswith((".cls", ".json", ".txt")) else b"1" for number, name in enumerate(names)}


NAMES = {
    "mixed extensions": ["0.jpg", "1.png", "2.JPEG", "3.webp", "4.png"],
    "dots": ["a.b.0.png", "a.b.1.png", "v1.2/x.y.0.png", "v1.2/x.y.1.png"],
    "other prefixes": ["cat_1.png", "cat_1.txt", "7.png", "dog/7.png", "dog/7.cls", "x.png"],
    "several images per sample": ["s.left.png", "s.right.png", "s.cls", "t.left.png", "t.right.png", "t.cls"],
    "long and odd": ["d" * 90 + "/" + "f" * 120 + ".png", "é::[1] .png", "no suffix", "./.hidden.png", "a//b.png"],
    "folders": ["train/cat/1.png", "train/dog/1.png", "val/cat/1.png"],
    "labels only in some": ["0.png", "1.png", "1.cls", "2.jpg", "2.json"],
}


@pytest.mark.fault("tar shards")
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("names", NAMES.values(), ids=list(NAMES))
def test_every_image_of_a_shard_is_read(tmp_path, names, form):
    files = numbered(names)
    source = Source(str(write_tar(tmp_path / "shard.tar", files, form)))
    expected = [data for data in files.values() if data.startswith(b"\x89PNG")]
    assert [image.data for image in islice(ImageStream(source, shuffle_buffer_size=1), len(expected))] == expected
    assert count_images(source) == len(expected)


def test_the_images_of_one_field_are_read_where_it_is_named(tmp_path):
    path = write_tar(tmp_path / "shard.tar", numbered(NAMES["several images per sample"]))
    assert count_images(Source(str(path))) == 4 and count_images(Source(str(path), image_column="left.png")) == 2
    assert "4 images (4 .png) in 1 tar shards, 0 damaged parts; left out: 2 .cls" in load_source(Source(str(path))).summary()


def test_labels_of_samples(tmp_path):
    files = {"a.0.png": png(0), "a.0.cls": b"4", "b.png": png(1), "b.json": b'{"cls": 5}', "b.txt": b"", "c.l.png": png(2)}
    files |= {"c.r.png": png(3), "c.cls": b"6\n"}
    source = Source(str(write_tar(tmp_path / "shard.tar", files)), label_column="cls")
    assert [row["cls"] for row in load_source(source, also=["cls"])] == [4, 5, 6, 6]
    assert [label for _, label in LabeledImages(source)] == [4, 5, 6, 6]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.cls": b"cat", "b.json": b'{"cls": "1.e"}'}, ["cat", "1.e"]),
        ({"a.cls": b"nan\n", "b.cls": b"-"}, ["nan", "-"]),
        ({"a.cls": b"+3", "b.json": b'{"cls": true}'}, [3, 1]),
    ],
)
def test_labels_are_numbers_or_names(tmp_path, files, expected):
    files = dict(sorted({"a.png": png(0), "b.png": png(1), **files}.items()))
    path = write_tar(tmp_path / "shard.tar", files)
    assert [label for _, label in LabeledImages(Source(str(path), label_column="cls"))] == expected


@pytest.mark.fault("labels")
@pytest.mark.parametrize(
    "files", [{"a.cls": b"1.7"}, {"a.json": b'{"cls": 1.7}'}, {"a.json": b'{"cls": [1]}'}, {"a.json": b"[]"}]
)
def test_labels_in_tar_shards_that_are_no_classes(tmp_path, files):
    path = write_tar(tmp_path / "shard.tar", {"a.png": png(0), **files})
    with refused("'a.png of shard.tar'", "expected a class"):
        list(LabeledImages(Source(str(path), label_column="cls")))


def test_shards_named_after_splits(tmp_path):
    for number, name in enumerate(["train-000", "train-001", "val-000"]):
        write_tar(tmp_path / f"{name}.tar", {"x.png": png(number)})
    assert count_images(Source(str(tmp_path))) == 2 and count_images(Source(str(tmp_path), split="validation")) == 1
    assert count_images(Source(str(tmp_path), split="all")) == 3
    write_tar(tmp_path / "extra.tar", {"x.png": png(3)})
    assert count_images(Source(str(tmp_path))) == 4


def damaged(data: bytes, how: str) -> bytes:
    header = 512 * 2 * 6  # of the seventh of members that each take one block of header and one of data
    return {
        "start": b"\xff" * 512 + data[512:],
        "start cut": data[700:],
        "middle": data[:header] + b"\xff" * 512 + data[header + 512 :],
        "middle, several": data[:header] + b"\xff" * 3000 + data[header + 3000 :],
        "middle, zeros": data[:header] + b"\0" * 1536 + data[header + 1536 :],
        "bit": data[:header] + bytes([data[header] ^ 1]) + data[header + 1 :],
        "end, in data": data[: 512 * 2 * 11 + 512 + 40],
        "end, in a header": data[: 512 * 2 * 11 + 100],
        "end, between members": data[: 512 * 2 * 11],
        "missing bytes": data[: header + 100] + data[header + 400 :],
    }[how]


LOST = {"start cut": 1, "middle, several": 3, "middle, zeros": 2}  # images of twelve; of others one
HOW = ["start", "start cut", "middle", "middle, several", "middle, zeros", "bit", "end, in data", "end, in a header"]
HOW += ["end, between members", "missing bytes"]


@pytest.mark.fault("tar shards")
@pytest.mark.parametrize("how", HOW)
def test_damage_is_counted_named_and_read_around(tmp_path, how):
    files = {f"{number}.png": png(number) for number in range(12)}
    path = write_tar(tmp_path / "shard.tar", files)
    path.write_bytes(damaged(path.read_bytes(), how))
    source = Source(str(path))
    images = list(takewhile(lambda image: image.epoch == 0, ImageStream(source, shuffle_buffer_size=1)))
    parts = [image.name for image in images if not image.data]
    assert len(parts) == 1 and "damaged part from byte" in parts[0] and "shard.tar" in parts[0]
    read = [image.data for image in images if image.data]
    assert len(read) == 12 - LOST.get(how, 1) and not Counter(read) - Counter(files.values())
    assert count_images(source) == len(read)
    with refused("1 damaged", "shard.tar from byte", "data.max_corrupt_fraction", str(path)):
        epoch_length(DataConfig(str(path)))
    assert epoch_length(DataConfig(str(path), max_corrupt_fraction=0.5)) == len(read)


@pytest.mark.fault("tar shards")
@pytest.mark.parametrize("content", [b"", b"no tar", b"\0" * 10240, b"\xff" * 4096], ids=["empty", "short", "zeros", "noise"])
def test_what_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "shard.tar").write_bytes(content)
    with refused("shard.tar", "images"):
        epoch_length(DataConfig(str(tmp_path / "shard.tar")))


def test_appended_tars_are_read_without_complaint(tmp_path):
    first = write_tar(tmp_path / "1.tar", {"a.png": png(1)}).read_bytes()
    second = write_tar(tmp_path / "2.tar", {"b.png": png(2)}).read_bytes()
    members = list(read_members(io.BytesIO(first + second)))
    assert [(member.name, member.data) for member in members] == [("a.png", png(1)), ("b.png", png(2))]


def test_links_in_a_tar_are_left_out_and_apple_doubles_too(tmp_path):
    path = write_tar(tmp_path / "shard.tar", {"a.png": png(1), "._a.png": b"x"})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(link)
    assert count_images(Source(str(path))) == 1
    assert "left out: 1 .png (._a.png), 1 links (b.png)" in load_source(Source(str(path))).summary()


@pytest.mark.parametrize("stop", [0, 3, 14])
def test_damaged_shards_are_resumed(tmp_path, stop):
    path = write_tar(tmp_path / "shard.tar", {f"{number}.png": png(number) for number in range(12)})
    path.write_bytes(damaged(path.read_bytes(), "middle"))
    expected = list(islice(ImageStream(Source(str(path)), shuffle_buffer_size=4), 30))
    stopped, again = (ImageStream(Source(str(path)), shuffle_buffer_size=4) for _ in range(2))
    assert list(islice(stopped, stop)) == expected[:stop]
    again.load_state_dict(stopped.state_dict())
    assert list(islice(again, 30 - stop)) == expected[stop:]
