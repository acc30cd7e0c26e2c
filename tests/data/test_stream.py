import io
import tarfile
from collections import Counter
from itertools import islice, takewhile

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchdata.stateful_dataloader import StatefulDataLoader

from hssl_hf.data.source import Source, StreamError, count_images, load_source
from hssl_hf.data.stream import ImageStream
from tests.conftest import SAMPLE


def png(value: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value % 256, np.uint8) + np.uint8(value // 256)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder, images: int, shards: int, column: str = "image"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = {column: [{"bytes": png(i), "path": f"{i}.png"} for i in range(images)], "label": [i % 2 for i in range(images)]}
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict(rows, features=features)
    for shard in range(shards):
        piece = table.shard(shards, shard, contiguous=True)
        piece.to_parquet(folder / f"train-{shard:05d}-of-{shards:05d}.parquet")
    return folder


def first_epoch(source, **arguments):
    return list(takewhile(lambda image: image.epoch == 0, ImageStream(source, **arguments)))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return Source(str(write_parquet(tmp_path_factory.mktemp("parquet"), images=50, shards=4)))


def test_an_epoch_has_every_image_once_in_a_shuffled_order(parquet):
    names = [image.name for image in first_epoch(parquet, seed=1, shuffle_buffer_size=16)]
    assert Counter(names) == Counter(f"{i}.png" for i in range(50))
    assert names != [image.name for image in first_epoch(parquet, seed=2, shuffle_buffer_size=16)]
    assert names == [image.name for image in first_epoch(parquet, seed=1, shuffle_buffer_size=16)]


def test_epochs_differ_and_never_end(parquet):
    images = list(islice(ImageStream(parquet, shuffle_buffer_size=16), 150))
    epochs = [[i.name for i in images if i.epoch == epoch] for epoch in range(3)]
    assert [len(epoch) for epoch in epochs] == [50, 50, 50]
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 12])
def test_workers_divide_an_epoch_without_overlap(parquet, workers):
    """4 shards among up to 12 workers: dealt out where there are enough, else split by rows."""
    names = [i.name for r in range(workers) for i in first_epoch(parquet, rank=r, world_size=workers, shuffle_buffer_size=8)]
    assert Counter(names) == Counter(f"{i}.png" for i in range(50))


@settings(max_examples=25)
@given(st.integers(0, 170), st.integers(1, 60), st.integers(1, 3))
def test_resumes_exactly_at_any_image(parquet, stop, window, workers):
    arguments = {"seed": 3, "shuffle_buffer_size": window, "world_size": workers, "rank": workers - 1}
    expected = list(islice(ImageStream(parquet, **arguments), stop + 70))
    stream = ImageStream(parquet, **arguments)
    iterator = iter(stream)
    assert list(islice(iterator, stop)) == expected[:stop]
    again = ImageStream(parquet, **arguments)
    again.load_state_dict(stream.state_dict())
    assert list(islice(iter(again), 70)) == expected[stop:]


@settings(max_examples=12)
@given(st.data())
def test_other_numbers_of_workers_continue_without_loss_or_repetition(parquet, data):
    """Workers stop anywhere, others continue, stop, and others again: every epoch has every image once."""
    window, seen = data.draw(st.integers(1, 30)), []
    states, workers = None, data.draw(st.integers(1, 6))
    for _ in range(3):
        streams = [ImageStream(parquet, seed=3, shuffle_buffer_size=window, rank=r, world_size=workers) for r in range(workers)]
        for stream in streams:
            if states:
                stream.reshard_from(states)
            seen += [(i.epoch, i.name) for i in islice(stream, data.draw(st.integers(0, 40)))]
            copy = ImageStream(parquet, seed=3, shuffle_buffer_size=window)
            copy.load_state_dict(stream.state_dict())
            assert copy.state_dict() == stream.state_dict()
        states, workers = [stream.state_dict() for stream in streams], data.draw(st.integers(1, 6))
    final = [ImageStream(parquet, seed=3, shuffle_buffer_size=window, rank=r, world_size=workers) for r in range(workers)]
    last = max(epoch for epoch, _ in seen) if seen else 0
    for stream in final:
        stream.reshard_from(states)
        seen += [(i.epoch, i.name) for i in takewhile(lambda i: i.epoch <= last + 1, stream)]
    complete = Counter((epoch, f"{i}.png") for epoch in range(last + 2) for i in range(50))
    assert Counter(seen) == complete


def test_images_left_by_others_may_be_fewer_than_a_batch(parquet):
    before = [ImageStream(parquet, seed=3, rank=r, world_size=2, minimum=20) for r in range(2)]
    seen = [image.name for stream in before for image in islice(stream, 20)]
    stream = ImageStream(parquet, seed=3, minimum=40)
    stream.reshard_from([other.state_dict() for other in before])
    assert sorted(seen + [image.name for image in islice(stream, 10)]) == sorted(f"{i}.png" for i in range(50))
    assert len(list(islice(stream, 40))) == 40


def test_what_is_resharded_is_resumed_exactly(parquet):
    before = [ImageStream(parquet, seed=3, shuffle_buffer_size=8, rank=r, world_size=3) for r in range(3)]
    for count, stream in zip((5, 30, 12), before, strict=True):
        list(islice(stream, count))
    states = [stream.state_dict() for stream in before]

    def heir():
        stream = ImageStream(parquet, seed=3, shuffle_buffer_size=8, rank=1, world_size=2)
        stream.reshard_from(states)
        return stream

    expected = list(islice(heir(), 80))
    for stop in (0, 3, 9, 20, 50):
        stopped, again = heir(), ImageStream(parquet, seed=3, shuffle_buffer_size=8, rank=1, world_size=2)
        assert list(islice(stopped, stop)) == expected[:stop]
        again.load_state_dict(stopped.state_dict())
        assert list(islice(again, 80 - stop)) == expected[stop:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_exactly_behind_a_loader(parquet, workers):
    def loader():
        stream = ImageStream(parquet, seed=5, shuffle_buffer_size=8)
        return StatefulDataLoader(stream, batch_size=4, num_workers=workers, collate_fn=lambda x: [i.name for i in x])

    uninterrupted, stopped, resumed = loader(), loader(), loader()
    expected = list(islice(iter(uninterrupted), 30))
    assert list(islice(iter(stopped), 11)) == expected[:11]
    resumed.load_state_dict(stopped.state_dict())
    assert list(islice(iter(resumed), 19)) == expected[11:]


@pytest.mark.parametrize("form", ["parquet file", "folder of images", "tar", "folder of tars", "not streamed"])
def test_reads_every_form(tmp_path, form):
    streaming = True
    if form == "parquet file":
        path = next(write_parquet(tmp_path, 6, 1).iterdir())
    elif form == "not streamed":
        path, streaming = write_parquet(tmp_path, 6, 2), False
    elif form == "folder of images":
        path = tmp_path / "images"
        path.mkdir()
        for i in range(6):
            (path / f"{i}.png").write_bytes(png(i))
    else:
        folder = tmp_path / "tars"
        folder.mkdir()
        path = folder if form == "folder of tars" else folder / "train-000.tar"
        for shard in range(2 if path == folder else 1):
            with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as tar:
                for i in range(3 if path == folder else 6):
                    data = png(3 * shard + i)
                    entry = tarfile.TarInfo(f"{3 * shard + i:04d}.png")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    source = Source(str(path), streaming=streaming)
    images = first_epoch(source, shuffle_buffer_size=2)
    assert sorted(image.data for image in images) == sorted(png(i) for i in range(6))
    assert count_images(source) == 6


def test_embedded_sample_is_complete():
    """10,000 training and 2,000 test images, balanced, all different files of at most 8 MB."""
    for split, images in (("train", 10_000), ("test", 2_000)):
        source = Source(str(SAMPLE), split=split)
        assert count_images(source) == images
        labels = Counter(label for rows in load_source(source, also=["label"]).iter(batch_size=1000) for label in rows["label"])
        assert labels == Counter({label: images // 10 for label in range(10)})
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) <= 8 * 2**20


def test_column_by_name_and_nearest_name(tmp_path):
    write_parquet(tmp_path, 4, 1, column="img")
    assert len(first_epoch(Source(str(tmp_path), image_column="img"))) == 4
    assert len(first_epoch(Source(str(tmp_path)))) == 4, "the only column of images needs no name"
    with pytest.raises(StreamError, match=r"no column 'imgs'.*\['img', 'label'\].*data.image_column=img"):
        ImageStream(Source(str(tmp_path), image_column="imgs"))


def test_dataset_without_images_is_refused(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(StreamError, match=r"0 image columns \(none\).*data.image_column"):
        ImageStream(Source(str(tmp_path)))


def test_missing_path_and_split_are_refused(parquet, tmp_path):
    with pytest.raises(StreamError, match=r"does not exist"):
        ImageStream(Source(str(tmp_path / "nowhere")))
    with pytest.raises(StreamError, match=r"split 'validation'"):
        ImageStream(Source(parquet.path, split="validation"))


def test_empty_stream_and_too_large_a_batch_are_refused(tmp_path, parquet):
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": []}, features=features).to_parquet(tmp_path / "train.parquet", batch_size=1)
    with pytest.raises(StreamError, match="has no images in it"):
        next(iter(ImageStream(Source(str(tmp_path)))))
    with pytest.raises(StreamError, match="only 50 images in a pass for worker 1 of 1, but a batch needs 64"):
        list(islice(ImageStream(parquet, minimum=64), 60))


def test_damaged_shard_is_named(tmp_path):
    write_parquet(tmp_path, 8, 2)
    broken = tmp_path / "train-00001-of-00002.parquet"
    data = bytearray(broken.read_bytes())
    data[8:400] = b"\0" * 392
    broken.write_bytes(bytes(data))
    with pytest.raises(StreamError, match="shard 1 of"):
        first_epoch(Source(str(tmp_path)))


def test_a_broken_connection_is_opened_again_where_it_broke(parquet, monkeypatch):
    stream, failures = ImageStream(parquet, shuffle_buffer_size=1), []
    monkeypatch.setattr("hssl_hf.data.shard_reader.allowed_attempts", lambda source: 5)  # as of a server
    monkeypatch.setattr("hssl_hf.data.shard_reader.BACKOFF_SECONDS", 0)
    plain = datasets.IterableDataset.iter

    def flaky(self, batch_size):
        for number, batch in enumerate(plain(self, batch_size=5)):
            if number == 1 and len(failures) < 3:
                failures.append(number)
                raise ConnectionError("server disconnected")
            yield batch

    monkeypatch.setattr(datasets.IterableDataset, "iter", flaky)
    with pytest.warns(UserWarning, match="server disconnected"):
        names = [i.name for i in takewhile(lambda image: image.epoch == 0, stream)]
    assert len(failures) == 3 and Counter(names) == Counter(f"{i}.png" for i in range(50))


def test_a_connection_that_stays_broken_is_reported(parquet, monkeypatch):
    def dead(self, batch_size):
        raise ConnectionError("server disconnected")
        yield

    stream = ImageStream(parquet)
    monkeypatch.setattr("hssl_hf.data.shard_reader.allowed_attempts", lambda source: 5)
    monkeypatch.setattr("hssl_hf.data.shard_reader.BACKOFF_SECONDS", 0)
    monkeypatch.setattr(datasets.IterableDataset, "iter", dead)
    with pytest.warns(UserWarning), pytest.raises(StreamError, match="could not be read at row 0 in 6 attempts"):
        next(iter(stream))
