"""Rows of a shard in their order, through interruptions of the connection."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from time import sleep

from hssl_hf.data.errors import StreamError
from hssl_hf.data.source import Dataset, Source

READ_ROWS = 64  # rows per read; ours: large enough to be cheap, small next to a window
REOPEN_ATTEMPTS = 5
BACKOFF_SECONDS = 1.0  # before the first reconnection; doubles each time


def read_shard(dataset: Dataset, number: int, first: int, source: Source) -> Iterator[tuple[int, dict]]:
    """Rows of one shard with their numbers; a broken connection is reopened at the same row.

    Args:
        dataset: the opened source.
        number: of the shard.
        first: number of the first row.
    Raises:
        StreamError: for a shard that cannot be read.
    """
    shard, row, attempts = dataset.shard(num_shards=dataset.num_shards, index=number), first, 0
    while True:
        try:
            for batch in (shard.skip(row) if row else shard).iter(batch_size=READ_ROWS):
                for cells in zip(*batch.values(), strict=True):
                    yield row, dict(zip(batch, cells, strict=True))
                    row, attempts = row + 1, 0
            return
        except OSError as error:
            attempts += 1
            if attempts > allowed_attempts(source):
                raise StreamError(
                    f"shard {number} of {source.path!r} could not be read at row {row} in {attempts} attempts: {error}"
                ) from error
            warnings.warn(f"reading shard {number} of {source.path!r} again from row {row}: {error}", stacklevel=2)
            sleep(BACKOFF_SECONDS * 2 ** (attempts - 1))
        except KeyError as error:  # of a csv or jsonl file, whose columns are known only when it is read
            raise StreamError(
                f"{source.path!r} lacks a column ({error.args[0]}); name another with data.image_column=... or label_column=..."
            ) from error
        except Exception as error:  # of pandas, pyarrow and others that read what others have written
            raise StreamError(
                f"shard {number} of {source.path!r} is damaged near row {row}, or not of the expected types: {error}"
            ) from error


def allowed_attempts(source: Source) -> int:
    """How often a shard is opened again: never on this machine."""
    return 0 if Path(source.path).expanduser().exists() else REOPEN_ATTEMPTS
