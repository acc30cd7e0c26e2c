"""A split is read once, whatever the number of processes and workers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hssl_hf.data.errors import StreamError
from hssl_hf.data.source import Source
from hssl_hf.evaluation import images as images_module
from hssl_hf.evaluation.images import LabeledImages
from tests.data.test_decode import ONE, SEVERAL
from tests.data.test_stream import png, write_parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_parquet(tmp_path_factory.mktemp("data"), 23, 3))


@settings(max_examples=12)
@given(st.integers(1, 4), st.integers(1, 3), st.none() | st.integers(1, 30), st.none() | st.integers(1, 12))
def test_workers_share_a_split(folder, processes, workers, limit, limit_per_class):
    """Each image is read by one of them, and those that a limit leaves are the first ones of the files."""
    images = LabeledImages(Source(folder), limit, limit_per_class)
    alone = [(sample.position, sample.label) for sample in images.samples()]
    kept = [label for _, label in alone]
    assert len(alone) <= (limit or 23) and max(map(kept.count, kept)) <= (limit_per_class or 23)
    together = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(processes):
            for worker in range(workers):
                info = type("Info", (), {"id": worker, "num_workers": workers})
                patch.setattr(images_module, "get_worker_info", lambda info=info: info)
                together += [(sample.position, sample.label) for sample in images.share(rank, processes).samples()]
    assert sorted(together) == alone == sorted(alone)
    done = frozenset(position for position, _ in alone[::2])
    assert [sample.position for sample in images.share(0, 1, done).samples()] == [position for position, _ in alone[1::2]]


def test_a_missing_column_of_labels_is_refused(tmp_path):
    path = str(write_parquet(tmp_path, 3, 1))
    with pytest.raises(StreamError, match=r"no column 'klass'; it has \['image', 'label'\]"):
        list(LabeledImages(Source(path, label_column="klass")))


@pytest.mark.fault("files with several images")
def test_files_with_several_images_are_named_once(tmp_path, caplog):
    for number, name in enumerate(("TIFF stack", "animated GIF", "PNG", "animated WebP")):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        (tmp_path / str(number % 2) / f"{name}.image").write_bytes({**SEVERAL, **ONE}[name])
    images = LabeledImages(Source(str(tmp_path)))
    assert len(list(images)) == 4 and len(list(images)) == 4
    assert caplog.text.count("the first image is read of 3 files with several images (") == 1
    assert all(f"{name}.image" in caplog.text for name in ("TIFF stack", "animated GIF", "animated WebP"))


def test_images_that_cannot_be_decoded_are_left_out_by_name(tmp_path, caplog):
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "good.png").write_bytes(png(1))
    (tmp_path / "b" / "broken.png").write_bytes(b"no image")
    assert sorted(label for _, label in LabeledImages(Source(str(tmp_path)))) == [0, 1]
    assert "1 that cannot be decoded" in caplog.text and "b/broken.png" in caplog.text
