"""Files that list some of the classes of a dataset."""

import re
from collections.abc import Sequence
from pathlib import Path

from timm.data import ImageNetInfo

from hssl_hf.data.errors import StreamError
from hssl_hf.errors import reason, shown

COMMENT, WORDNET_ID = "#", re.compile(r"n\d{8}")
SHOWN = 5  # names in a message


def read_class_list(path: str) -> list[str]:
    """The lines of a file of class names, without comments, empty lines and the space around them.

    Raises:
        StreamError: if the file cannot be read.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise StreamError(f"the file cannot be read: {reason(error)}") from error
    return [line for line in lines if line and not line.startswith(COMMENT)]


def find_classes(lines: Sequence[str], known: Sequence[str]) -> set[int]:
    """Labels of the classes that lines name.

    A line is the full name of a class of the dataset, spaces included. One that is none but begins with WordNet ids names
    these, whatever follows them; they are classes of the dataset or, if it has a thousand of other names (or none), of
    ImageNet's thousand in their order.

    Args:
        lines: of a file of class names.
        known: names of the dataset's classes, in the order of their labels.
    Raises:
        StreamError: if there are no lines, or some name no class.
    """
    if not lines:
        raise StreamError(f"the file is empty; expected the names of classes{_examples(known)}, one per line")
    orders = [known, *([ImageNetInfo("imagenet-1k").label_names()] if len(known) in (0, 1000) else [])]
    named = [{name: None for line in lines for name in _names(line, order)} for order in orders]
    missing = [[name for name in names if name not in order] for names, order in zip(named, map(set, orders), strict=True)]
    best = min(range(len(orders)), key=lambda number: len(missing[number]))
    if unknown := missing[best]:
        others = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise StreamError(
            f"{len(unknown)} of {len(named[best])} classes are not among the {len(known)} of the dataset: "
            f"{', '.join(map(shown, unknown[:SHOWN]))}{others}; expected the full name of one class per line{_examples(known)}"
        )
    return {orders[best].index(name) for name in named[best]}


def _names(line: str, order: Sequence[str]) -> list[str]:
    """The classes that a line names: itself, or the WordNet ids with which it begins."""
    words = line.split()
    count = next((number for number, word in enumerate(words) if not WORDNET_ID.fullmatch(word)), len(words))
    return [line] if line in order or not count else words[:count]


def _examples(known: Sequence[str]) -> str:
    return f", such as {', '.join(map(shown, known[:3]))}" if known else ""
