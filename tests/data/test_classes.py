"""Some of the classes of a dataset: which images come, in which order, how many, and after an interruption."""

from itertools import islice

import datasets
import pytest
from timm.data import ImageNetInfo

from hssl_hf.config.recipe import load_recipe
from hssl_hf.data.source import Source, count_images
from hssl_hf.data.stream import ImageStream
from hssl_hf.evaluation.images import LabeledImages
from tests.conftest import ROOT
from tests.data.test_stream import png
from tests.faults import refused

LISTS = {number: ROOT / "training" / "data" / f"imagenet_s{number}.txt" for number in (50, 300, 919)}


def write(folder, names: list[str], labels: list[int]):
    """Images in two shards, whose number is in their pixels, with classes of these names."""
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    half = len(labels) // 2
    for shard, indices in enumerate((range(half), range(half, len(labels)))):
        rows = {"image": [{"bytes": png(i), "path": None} for i in indices], "label": [labels[i] for i in indices]}
        dataset = datasets.Dataset.from_dict(rows, features=features)
        dataset.to_parquet(str(folder / f"train-{shard:05d}-of-00002.parquet"))
    return str(folder)


@pytest.fixture
def animals(tmp_path):
    (tmp_path / "some.txt").write_text("# two of them\ncat\nowl\n")
    labels = [i % 4 for i in range(40)]
    return Source(write(tmp_path / "data", ["ant", "bee", "cat", "owl"], labels), classes=str(tmp_path / "some.txt"))


def test_only_images_of_these_classes_come(animals):
    expected = {png(i) for i in range(40) if i % 4 >= 2}
    stream = ImageStream(animals, shuffle_buffer_size=8)
    assert {image.data for image in islice(stream, 20)} == expected and count_images(animals) == 20
    two = [ImageStream(animals, rank=rank, world_size=2, shuffle_buffer_size=8) for rank in (0, 1)]
    halves = [[image.data for image in islice(stream, 10)] for stream in two]
    assert set(halves[0]) | set(halves[1]) == expected and not set(halves[0]) & set(halves[1])
    assert {label for _, label in LabeledImages(animals)} == {2, 3}


def test_an_interrupted_stream_continues_where_it_was(animals):
    expected = [image.data for image in islice(ImageStream(animals, shuffle_buffer_size=8), 33)]
    first = ImageStream(animals, shuffle_buffer_size=8)
    begun = [image.data for image in islice(first, 13)]
    second = ImageStream(animals, shuffle_buffer_size=8)
    second.load_state_dict(first.state_dict())
    assert begun + [image.data for image in islice(second, 20)] == expected


def test_wordnet_ids_match_a_dataset_with_other_names_for_its_thousand_classes(tmp_path):
    """As on the Hub, where ImageNet's classes are "tench, Tinca tinca" and so on: by their position among the sorted ids."""
    names = [f"class {i}" for i in range(1000)]
    where = write(tmp_path / "data", names, [0, 1, 2, 3, 997, 999])
    source = Source(where, classes=str(LISTS[300]))
    images = {image.data for image in islice(ImageStream(source, shuffle_buffer_size=1), 3)}
    assert images == {png(0), png(1), png(3)}, "n01440764, n01443537 and n01491361 are the labels 0, 1 and 3"


@pytest.mark.fault("class lists")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"dog cat", ["1 of 1 classes", "'dog cat'", "'ant', 'bee', 'cat'", "one class per line"]),
        (b"cat\ngreat auk\nn01440764 tench", ["2 of 3 classes", "'great auk', 'n01440764'"]),
        ("\n".join(f"class {i}" for i in range(9)).encode(), ["9 of 9 classes", "'class 4' and 4 more"]),
        (b"Cat", ["'Cat'"]),
        (b"", ["the file is empty", "'ant'"]),
        (b"# cat\n \n", ["the file is empty"]),
        (b"\xff\xfe", ["cannot be read"]),
        (None, ["cannot be read", "No such file"]),
    ],
    ids=["two in a line", "spaces", "many", "case", "empty", "comments", "not utf-8", "missing"],
)
def test_classes_that_are_not_there_are_refused(animals, tmp_path, text, words):
    path = tmp_path / "others.txt"
    if text is not None:
        path.write_bytes(text)
    with refused("data.classes=", str(path), animals.path, *words):
        ImageStream(Source(animals.path, classes=str(path)))


NAMES = ["test tube", "great white shark, white shark", "tench", "n01440764", "C#", "a  b", "n01443537 goldfish", "Käfer"]


@pytest.mark.fault("class lists")
@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("test tube\ntench", {0, 2}),
        ("great white shark, white shark", {1}),
        ("  tench\t\r\n# tench\r\n\r\nC#\r\n", {2, 4}),
        ("n01440764 tench, Tinca tinca", {3}),
        ("n01443537 goldfish\nn01440764\ta fish", {3, 6}),
        ("\ufeffKäfer\na  b", {5, 7}),
        ("tench\ntench", {2}),
    ],
)
def test_a_line_is_a_class(tmp_path, text, labels):
    """Spaces, commas and ids belong to a name; an id that is no name of its own is followed by words about it."""
    (tmp_path / "some.txt").write_bytes(text.encode())
    source = Source(write(tmp_path / "data", NAMES, list(range(8))), classes=str(tmp_path / "some.txt"))
    assert {image.data for image in islice(ImageStream(source, shuffle_buffer_size=1), len(labels))} == set(map(png, labels))
    assert count_images(source) == len(labels)


def test_the_lists_have_their_numbers_of_imagenets_classes():
    """ImageNet-S50, -S300 and -S (919): each holds the smaller ones, in the order of the synsets."""
    ids = {}
    for number, path in LISTS.items():
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        ids[number] = " ".join(lines).split()
        assert len(set(ids[number])) == len(ids[number]) == number and ids[number] == sorted(ids[number])
    assert set(ids[50]) < set(ids[300]) < set(ids[919]) < set(ImageNetInfo("imagenet-1k").label_names())


def test_a_recipe_names_the_file_relative_to_itself(tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {path: user/images, classes: ./some.txt}\n")
    assert load_recipe(tmp_path / "recipe.yaml").data.classes == str(tmp_path / "some.txt")
