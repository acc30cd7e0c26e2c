from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.multiprocessing.reductions import rebuild_storage_fd
from torchdata.stateful_dataloader import StatefulDataLoader

from hssl_hf.config.recipe import Recipe, recipe_diff
from hssl_hf.data.loader import restore_loader, worker_errors_as_stream_errors
from hssl_hf.data.source import Source, StreamError
from hssl_hf.data.stream import ImageStream
from tests.data.test_stream import write_parquet


class ClosedDescriptor:
    """The file descriptor of a tensor whose process has died."""

    def detach(self) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")


def test_a_worker_that_dies_while_it_sends_a_tensor_is_reported():
    with pytest.raises(StreamError, match="a data loader worker died"), worker_errors_as_stream_errors():
        rebuild_storage_fd(torch.UntypedStorage, ClosedDescriptor(), 4)


@pytest.mark.parametrize("error", [ConnectionResetError("by a server"), RuntimeError("of something else")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error), match=str(error)), worker_errors_as_stream_errors():
        raise error


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0), (0, 2), (2, 0), (2, 1), (2, 2)])
def test_another_number_of_workers_continues_without_loss_or_repetition(tmp_path, before, after, caplog):
    source = Source(str(write_parquet(tmp_path, images=50, shards=4)))

    def loader(workers):
        stream = ImageStream(source, seed=5, shuffle_buffer_size=8)
        return StatefulDataLoader(stream, 4, num_workers=workers, collate_fn=lambda batch: [(i.epoch, i.name) for i in batch])

    first, second = loader(before), loader(after)
    seen = [image for batch in islice(first, 7) for image in batch]
    restore_loader(second, [first.state_dict()], 0, 1)
    seen += [image for batch in islice(second, 30) for image in batch]
    counts = Counter(seen)
    assert all(counts[epoch, f"{number}.png"] == 1 for epoch in (0, 1) for number in range(50)) and max(counts.values()) == 1
    assert ("is resumed with" in caplog.text) == (before != after)


def test_the_number_of_workers_and_the_limit_of_damage_may_change_when_a_run_is_resumed():
    recipe = Recipe()
    changed = replace(recipe, data=replace(recipe.data, num_workers=1, max_corrupt_fraction=0.5))
    assert recipe_diff(recipe.to_dict(), changed.to_dict()) == []
    other = replace(recipe, data=replace(recipe.data, shuffle_buffer_size=3, path="elsewhere"))
    assert len(recipe_diff(recipe.to_dict(), other.to_dict())) == 2
