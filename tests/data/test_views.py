from itertools import islice

import pytest
import torch

from hssl_hf.data.augmentation import Augmentation, ViewConfig
from hssl_hf.data.source import Source
from hssl_hf.data.stream import EncodedImage, ImageStream
from hssl_hf.data.views import TooManyCorruptImagesError, ViewStream
from tests.data.test_augmentation import SMALL
from tests.data.test_stream import png, write_parquet
from tests.faults import refused


def test_unequal_lists_of_views_are_refused():
    with pytest.raises(ValueError, match=r"one chance per global view, 1 as in global_crop_blur, got 2"):
        ViewConfig(global_crop_blur=(1.0,))


class Endless:
    """A stream in which every n-th image is broken."""

    def __init__(self, broken: int):
        self.broken = broken

    def __iter__(self):
        for i in range(10_000):
            yield EncodedImage(b"broken" if i % self.broken == self.broken - 1 else png(i), f"image {i}", 0)

    def state_dict(self):
        return {}


def test_corrupt_images_are_skipped_and_named():
    stream = ViewStream(Endless(5), Augmentation(SMALL), max_corrupt_fraction=0.5)
    samples = list(islice(stream, 10))
    assert [name for sample in samples for name in sample["corrupt"]] == ["image 4", "image 9"]
    assert stream.state_dict() == {"images": {}, "read": 12, "corrupt": 2}


@pytest.mark.fault("images that cannot be used")
@pytest.mark.parametrize(("image", "options"), [(b"broken", {"max_corrupt_fraction": 1.0}), (png(0), {"fraction": 1e-9})])
def test_a_pass_that_gives_no_image_is_an_error(tmp_path, image, options):
    """Where every image may be undecodable, or a tiny fraction is used."""
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(image)
    images = ImageStream(Source(str(tmp_path)))
    with refused(str(tmp_path), "no image of a pass", "cannot be decoded"):
        next(iter(ViewStream(images, Augmentation(SMALL), **options)))


def test_a_fraction_is_always_the_same_images():
    """Chosen by their bytes: about a third, whatever came before, and all of them with a fraction of 1."""
    images = [EncodedImage(str(number).encode(), str(number), 0) for number in range(600)]

    class Kept(Augmentation):
        def decode_and_augment(self, encoded):
            return {"name": encoded.name}

    def chosen(images, fraction):
        return [sample["name"] for sample in ViewStream(images, Kept(SMALL), fraction=fraction)]

    third = chosen(images, 1 / 3)
    assert 150 < len(third) < 250 and set(chosen(images[::2], 1 / 3)) == set(third) & {image.name for image in images[::2]}
    assert set(third) < set(chosen(images, 0.5)) and len(chosen(images, 1.0)) == 600


def test_too_many_corrupt_images_stop_the_stream_with_a_name():
    with pytest.raises(TooManyCorruptImagesError, match=r"20 of 100 .* data.max_corrupt_fraction=0.1.*'image 99'"):
        list(islice(ViewStream(Endless(5), Augmentation(SMALL), max_corrupt_fraction=0.1), 500))


def test_same_image_same_views_whatever_the_number_of_workers(tmp_path):
    source = Source(str(write_parquet(tmp_path, images=40, shards=4)))

    def views(rank, world_size, count):
        arguments = {"rank": rank, "world_size": world_size, "shuffle_buffer_size": 16}
        names = [image.name for image in islice(ImageStream(source, **arguments), count)]
        samples = islice(ViewStream(ImageStream(source, **arguments), Augmentation(SMALL)), count)
        return {name: sample["pixel_values"] for name, sample in zip(names, samples, strict=True)}

    alone, second = views(0, 1, 40), views(1, 2, 20)
    assert len(second) == 20 and all(torch.equal(alone[name], pixels) for name, pixels in second.items())
