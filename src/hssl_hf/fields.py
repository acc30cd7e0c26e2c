"""Declared fields: the type and the range of a value, written once in its annotation and checked in one place.

    class ViewConfig(Section):
        flip_probability: Fraction = 0.5
        blur_sigma: Annotated[tuple[Positive, Positive], Ascending()] = (0.1, 2.0)

`Section` checks on construction, configurations of models on every assignment, recipes and Python alike. `describe` puts a
declaration into words. What several fields have to do with each other is checked in `__post_init__`.
"""

import difflib
import math
import os
import re
from dataclasses import MISSING, dataclass, fields
from functools import cache
from inspect import get_annotations
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, ClassVar, Literal, Union, get_args, get_origin

from hssl_hf.errors import UserError, shown

LONGEST_TEXT, DEEPEST = 4096, 8  # characters of a text, and levels of free values
UNREADABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and what is no UTF-8


class FieldError(UserError):
    """A value that its declaration does not allow. The message starts with the name of the field."""

    def below(self, section: str) -> "FieldError":
        """The same error, for a field of this section."""
        return FieldError(f"{section}.{self}" if section else str(self))


@dataclass(frozen=True)
class Range:
    """The numbers between two bounds, each included (`least`, `most`) or not (`above`, `below`)."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if None not in (self.least, self.most):
            return f"from {self.least} to {self.most}"
        bounds = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        return " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)


@dataclass(frozen=True)
class Length:
    """Lists of so many values."""

    least: int
    most: int

    def __contains__(self, values: tuple) -> bool:
        return self.least <= len(values) <= self.most

    def __str__(self) -> str:
        return f"of {self.least} to {self.most} values"


@dataclass(frozen=True)
class Ascending:
    """Lists in which no value is smaller than the one before it."""

    def __contains__(self, values: tuple) -> bool:
        return list(values) == sorted(values)

    def __str__(self) -> str:
        return "in ascending order"


@dataclass(frozen=True)
class Distinct:
    """Lists in which no value occurs twice."""

    def __contains__(self, values: tuple) -> bool:
        return len(set(values)) == len(values)

    def __str__(self) -> str:
        return "without repetitions"


Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(above=0, most=1)]
Temperature = Annotated[float, Range(0.001, 100)]  # below, exponentials of cosines exceed what fp32 holds
Epochs = Annotated[float, Range(0, 1_000_000)]
Pixels = Annotated[int, Range(4, 4096)]
Images = Annotated[int, Range(1, 10**12)]
BatchSize = Annotated[int, Range(1, 2**20)]
Steps = Annotated[int, Range(1, 10**9)]
Width = Annotated[int, Range(1, 2**16)]
Depth = Annotated[int, Range(1, 256)]
Seed = Annotated[int, Range(0, 2**31 - 1)]


class Declared:
    """A dataclass whose fields are declared as this module describes."""

    @classmethod
    @cache
    def declarations(cls) -> dict[str, object]:
        """Fields with their annotations, inherited ones first."""
        parents = [parent for parent in reversed(cls.__mro__) if issubclass(parent, Declared)]
        annotations = {name: kind for parent in parents for name, kind in get_annotations(parent, eval_str=True).items()}
        return {name: kind for name, kind in annotations.items() if get_origin(kind) is not ClassVar}

    @classmethod
    def nearest(cls, name: str) -> str:
        """A hint for the error about a field that does not exist."""
        near = difflib.get_close_matches(str(name), cls.declarations(), n=1)
        return f"Did you mean {near[0]!r}?" if near else f"Expected one of {', '.join(cls.declarations())}."


class Section(Declared):
    """A frozen dataclass that is checked when it is made.

    Raises:
        FieldError: for a value that its declaration does not allow.
    """

    def __post_init__(self):
        for name, kind in self.declarations().items():
            object.__setattr__(self, name, check(kind, getattr(self, name), name))


def make(kind: type[Section], tree, name: str = "") -> Section:
    """A section from a tree of plain values.

    Args:
        name: of the section, for messages; empty for the root.
    Raises:
        FieldError: for unknown keys, missing ones, and values that are not allowed.
    """
    if not isinstance(tree, dict):
        raise FieldError(f"{name or 'recipe'}: expected a section with keys, got {shown(tree)}")
    declarations = kind.declarations()
    try:
        for key in tree:
            if key not in declarations:
                raise FieldError(f"{str(key)[:100]}: unknown key. {kind.nearest(key)}")
        for field in fields(kind):
            if field.name not in tree and field.default is MISSING and field.default_factory is MISSING:
                raise FieldError(f"{field.name}: expected {describe(declarations[field.name])}, but it is missing")
        return kind(**tree)
    except FieldError as error:
        raise error.below(name) from None


def check(kind, value, name: str):
    """A value in its declared type: an integer as a float where that is meant, a list as a tuple, a tree as a section.

    Args:
        kind: an annotation: a type, a union, a `Literal`, a list or tuple of these, a `Section`, or one of them in `Annotated`
            with conditions such as `Range`, which have `in` and a text.
        name: of the field, for the message.
    Raises:
        FieldError: if the declaration does not allow the value. NaN and infinities are never allowed.
    """
    options, reason = _options(kind), None
    for option in options:
        try:
            return _check_option(option, value, name)
        except _UnexpectedError:
            continue
        except FieldError as error:  # about a part of the value
            reason = error
    if reason:
        raise reason
    quotes = "; text that looks like a number needs quotes" if str in options and isinstance(value, int | float) else ""
    raise FieldError(f"{name}: expected {describe(kind)}, got {shown(value)}{quotes}")


def describe(kind) -> str:
    """A declaration in words, such as "a number from 0 to 1" or "a list of 2 values, each a number above 0"."""
    options = _options(kind)
    if len(options) > 1:
        return " or ".join(describe(option) for option in options)
    bare, conditions = _split(options[0])
    origin, arguments = get_origin(bare), get_args(bare)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        count = [] if arguments[-1] is Ellipsis else [f"of {len(arguments)} values"]
        return f"{' '.join(['a list', *count, *map(str, conditions)])}, each {describe(arguments[0])}"
    if origin is dict:
        return f"names, each with {describe(arguments[1])}"
    return " ".join([_WORDS.get(bare, "a section with keys"), *map(str, conditions)])


class _UnexpectedError(Exception):
    """A value is not of a type, or does not meet its conditions."""


def _options(kind) -> tuple:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _split(kind) -> tuple[object, tuple]:
    """An annotation without `Annotated`, and the conditions in it."""
    return (kind.__origin__, kind.__metadata__) if get_origin(kind) is Annotated else (kind, ())


def _check_option(kind, value, name: str):
    bare, conditions = _split(kind)
    origin, arguments = get_origin(bare), get_args(bare)
    if origin is Literal:
        _require(isinstance(value, str) and value in arguments)
    elif origin is tuple:
        value = _check_list(arguments, value, name)
    elif origin is dict:
        _require(isinstance(value, dict))
        value = {_check_text(key): check(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    elif isinstance(bare, type) and issubclass(bare, Section):
        value = value if isinstance(value, bare) else make(bare, value, name)
    else:
        value = _CHECKS[bare](value, name)
    _require(all(value in condition for condition in conditions))
    return value


def _require(condition: bool, value=None):
    if not condition:
        raise _UnexpectedError
    return value


def _check_list(kinds: tuple, value, name: str) -> tuple:
    _require(isinstance(value, list | tuple))
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    _require(len(value) == len(kinds))
    return tuple(check(kind, item, f"{name}[{index}]") for index, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _check_int(value, name: str = "") -> int:
    _require((isinstance(value, Integral) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer()))
    return int(value)


def _check_float(value, name: str = "") -> float:
    _require(isinstance(value, Real) and not isinstance(value, bool))
    try:
        number = float(value)
    except OverflowError:
        raise _UnexpectedError from None
    _require(math.isfinite(number))
    return number


def _check_text(value, name: str = "") -> str:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    _require(isinstance(text, str) and text.strip() and len(text) <= LONGEST_TEXT and not UNREADABLE.search(text))
    return text


def _check_tree(value, name: str) -> dict:
    """Free values, as JSON has them: names with numbers, texts, lists and further trees."""
    _require(isinstance(value, dict))
    return {key: _check_plain(item, f"{name}.{key}", 1) for key, item in value.items() if _check_text(key)}


def _check_plain(value, name: str, depth: int):
    if depth > DEEPEST:
        raise FieldError(f"{name}: expected at most {DEEPEST} levels")
    if isinstance(value, dict):
        return {_check_text(key): _check_plain(item, f"{name}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_check_plain(item, f"{name}[{index}]", depth + 1) for index, item in enumerate(value))
    if isinstance(value, Integral):
        return value if isinstance(value, bool) else int(value)
    return value if value == "" else check(float | str | None, value, name)  # some arguments of timm are empty texts


_CHECKS = {
    bool: lambda value, name: _require(isinstance(value, bool), value),
    int: _check_int,
    float: _check_float,
    str: _check_text,
    NoneType: lambda value, name: _require(value is None),
    dict: _check_tree,
    object: lambda value, name: value,
}
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: f"text in one line of 1 to {LONGEST_TEXT} characters",
    NoneType: "null",
    dict: "names with values",
    object: "anything",
}
