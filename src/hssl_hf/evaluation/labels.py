"""Labels of images: which values are classes, and which labels give figures that mean nothing."""

import logging
from collections.abc import Sequence
from numbers import Integral

import datasets
import numpy as np
import torch
from torch import Tensor

from hssl_hf.data.errors import StreamError
from hssl_hf.data.local_dataset import printable
from hssl_hf.data.source import Source
from hssl_hf.errors import UserError, shown

CLASSES = 100_000
SCALARS = ("int", "uint", "bool", "string", "large_string")  # types of columns that can hold classes
Label = int | str
logger = logging.getLogger(__name__)


def require_label_column(features: datasets.Features | None, source: Source) -> None:
    """Raise a StreamError if the type of a column of labels is known and neither that of integers nor of names."""
    kind = (features or {}).get(source.label_column)
    dtype = str(getattr(kind, "dtype", ""))
    if kind is not None and not isinstance(kind, datasets.ClassLabel) and not dtype.startswith(SCALARS):
        raise StreamError(
            f"the column {source.label_column!r} of {source.path!r} holds {shown(kind)}; expected one class per image, as an "
            "integer from 0 on or as its name; name another column with data.label_column=..."
        )


def label_of(label: object, image: str | None, source: Source) -> Label:
    """The class of an image, as an integer or as its name.

    Args:
        label: from the column of labels.
        image: name of the image, for the message.
    Raises:
        StreamError: if the label is neither a name nor an integer from 0 to 99,999.
    """
    if isinstance(label, str) and label.strip():
        return label
    if isinstance(label, Integral | np.bool_) and 0 <= label < CLASSES:
        return int(label)
    hint = " (images of this split may have no labels: choose another one)" if label in (-1, None) else ""
    raise StreamError(
        f"the label of the image {printable(image or 'without a name')!r} in split {source.split!r} of {source.path!r} is "
        f"{shown(label)}{hint}; expected a class, its name or an integer from 0 to {CLASSES - 1}, in the column "
        f"{source.label_column!r}"
    )


def number_labels(labels: Sequence[Label], names: Sequence[str] | None, source: Source) -> tuple[Tensor, list[str] | None]:
    """Classes of images as numbers.

    Args:
        labels: integers or names.
        names: of the classes that integers stand for, where they are known.
        source: for the message.
    Returns:
        (n,) int64, and the names of the classes, None where there are none.
    Raises:
        StreamError: if some labels are names and others integers, or an integer has no name.
    """
    kinds = {type(label) for label in labels}
    if kinds == {str}:
        names = sorted(set(labels))
        numbers = {name: number for number, name in enumerate(names)}
        return torch.tensor([numbers[label] for label in labels]), names
    if str in kinds:
        raise StreamError(
            f"some labels in the column {source.label_column!r} of {source.path!r} (split {source.split!r}) are names and "
            "others integers; expected the same kind of all"
        )
    numbers = torch.tensor(labels, dtype=torch.int64)
    if names and int(numbers.max()) >= len(names):
        raise StreamError(
            f"the column {source.label_column!r} of {source.path!r} (split {source.split!r}) has the label "
            f"{int(numbers.max())}, but names of {len(names)} classes only"
        )
    return numbers, list(names) if names else None


def align_labels(
    train: tuple[Tensor, list[str] | None], test: tuple[Tensor, list[str] | None]
) -> tuple[Tensor, Tensor, list[str] | None]:
    """Labels of two splits in the same numbers: classes of the same name are the same class, whatever numbers a split gave it.

    Args:
        train, test: labels (n,) and (m,), and the names of their classes, None where labels are mere numbers.
    Returns:
        labels of both splits, and the names of all classes.
    Raises:
        UserError: if one split has names and the other mere numbers.
    """
    (labels, names), (test_labels, test_names) = train, test
    if (names is None) != (test_names is None):
        raise UserError(
            "one split has classes with names, the other mere numbers, so that they cannot be matched; write the labels of "
            "both in the same way"
        )
    if names is None or names == test_names:
        return labels, test_labels, names
    together = names + [name for name in test_names if name not in set(names)]
    numbers = {name: number for number, name in enumerate(together)}
    return labels, torch.tensor([numbers[name] for name in test_names])[test_labels], together


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
