import pytest
import torch
from torch.multiprocessing.reductions import rebuild_storage_fd

from hssl_hf.data.loader import worker_errors_as_stream_errors
from hssl_hf.data.source import StreamError


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
