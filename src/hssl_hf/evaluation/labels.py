"""Labels of images: which values are classes, and which labels give figures that mean nothing."""

import logging
from numbers import Integral

import datasets
import torch
from torch import Tensor

from hssl_hf.data.errors import StreamError
from hssl_hf.data.local_dataset import printable
from hssl_hf.data.source import Source
from hssl_hf.errors import UserError, shown

CLASSES = 100_000
logger = logging.getLogger(__name__)


def require_integer_column(features: datasets.Features | None, source: Source) -> None:
    """Raise a StreamError if the type of a column of labels is known and not that of integers."""
    kind = (features or {}).get(source.label_column)
    if kind is not None and not isinstance(kind, datasets.ClassLabel) and not _is_integer(getattr(kind, "dtype", "")):
        raise StreamError(
            f"the column {source.label_column!r} of {source.path!r} holds {shown(kind)}; expected one integer per image, its "
            "class from 0 on; name another with data.label_column=..., or write classes as integers"
        )


def class_of(label: object, image: str | None, source: Source) -> int:
    """The class of an image.

    Args:
        label: from the column of labels.
        image: name of the image, for the message.
    Raises:
        StreamError: if the label is no integer from 0 to 99,999.
    """
    if isinstance(label, Integral) and not isinstance(label, bool) and 0 <= label < CLASSES:
        return int(label)
    hint = " (images of this split may have no labels: choose another one)" if label in (-1, None) else ""
    raise StreamError(
        f"the label of the image {printable(image or 'without a name')!r} in split {source.split!r} of {source.path!r} is "
        f"{shown(label)}{hint}; expected an integer class from 0 to {CLASSES - 1} in the column {source.label_column!r}"
    )


def require_comparable(train: Tensor, test: Tensor) -> None:
    """Check that labels (n,) of training and (m,) of test images give an accuracy that means something.

    Test images of classes without a training image are counted in a warning; they are counted as wrong.

    Raises:
        UserError: if all training images have the same label, or no test image has a label that occurs among them.
    """
    known = torch.unique(train)
    if len(known) < 2:
        raise UserError(
            f"all {len(train)} training images have the label {known.tolist()[0]}, so that any accuracy would mean nothing; "
            "expected at least two classes: read more of them, or another split"
        )
    foreign = ~torch.isin(test, known)
    if foreign.all():
        raise UserError(
            f"none of the {len(test)} test images has a label that occurs among the training images (test {_range(test)}, "
            f"training {_range(train)}); expected the same classes in both splits"
        )
    if foreign.any():
        logger.warning(
            "%d of %d test images are of classes without any training image; they count as wrong", foreign.sum(), len(test)
        )


def _range(labels: Tensor) -> str:
    return f"{int(labels.min())} to {int(labels.max())}"


def _is_integer(dtype: str) -> bool:
    return str(dtype).startswith(("int", "uint"))
