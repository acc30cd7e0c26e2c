"""Declarations and their check, on types of their own; the package's own fields are walked in tests/config/test_values.py."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from hssl_hf.errors import LONGEST_MESSAGE, UserError, shown
from hssl_hf.fields import Ascending, Distinct, FieldError, Length, Range, Section, check, describe, make
from tests.faults import refused


@dataclass(frozen=True)
class Inner(Section):
    chance: Annotated[float, Range(0, 1)] = 0.5


@dataclass(frozen=True)
class Outer(Section):
    name: str
    count: Annotated[int, Range(1)] | None = None
    scale: Annotated[tuple[Annotated[float, Range(above=0)], Annotated[float, Range(above=0)]], Ascending()] = (1.0, 2.0)
    kinds: Annotated[tuple[Literal["a", "b"], ...], Length(1, 2), Distinct()] = ("a",)
    free: dict = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def test_values_take_their_declared_types():
    outer = make(Outer, {"name": Path("x/y"), "scale": [1, 2], "kinds": ["b"], "inner": {"chance": 1}, "count": 3.0})
    assert outer == Outer("x/y", 3, (1.0, 2.0), ("b",), {}, Inner(1.0))
    assert type(outer.inner.chance) is float and type(outer.count) is int and type(outer.scale[0]) is float
    assert Outer("x", inner={"chance": 0}).inner == Inner(0.0), "from Python too"
    assert pickle.loads(pickle.dumps(outer)) == outer


def test_a_declaration_in_words():
    words = {name: describe(kind) for name, kind in Outer.declarations().items()}
    assert words["count"] == "a whole number of at least 1 or null"
    assert words["scale"] == "a list of 2 values in ascending order, each a number above 0"
    assert words["kinds"] == "a list of 1 to 2 values without repetitions, each one of 'a', 'b'"
    assert describe(Inner.declarations()["chance"]) == "a number from 0 to 1"
    assert describe(Annotated[float, Range(above=0, most=2)]) == "a number above 0 and of at most 2"


@pytest.mark.fault("values from Python")
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": ""}, ["name: expected text", "got ''"]),
        ({"name": 3}, ["name: expected text", "got 3", "quotes"]),
        ({"name": "a\nb"}, ["name: expected text in one line"]),
        ({"name": "\udcff"}, ["name: expected text"]),
        ({"name": "x", "count": 0}, ["count: expected a whole number of at least 1 or null, got 0"]),
        ({"name": "x", "count": True}, ["count: expected", "got True"]),
        ({"name": "x", "scale": (2, 1)}, ["scale: expected a list of 2 values in ascending order", "got (2, 1)"]),
        ({"name": "x", "scale": (1, float("inf"))}, ["scale[1]: expected a number above 0, got inf"]),
        ({"name": "x", "scale": 1}, ["scale: expected a list of 2 values"]),
        ({"name": "x", "kinds": ("a", "a")}, ["kinds: expected a list", "without repetitions"]),
        ({"name": "x", "kinds": ("a", "c")}, ["kinds[1]: expected one of 'a', 'b', got 'c'"]),
        ({"name": "x", "inner": {"chance": 2}}, ["inner.chance: expected a number from 0 to 1, got 2"]),
        ({"name": "x", "inner": {"chanse": 1}}, ["inner.chanse: unknown key. Did you mean 'chance'?"]),
        ({"name": "x", "inner": 1}, ["inner: expected a section with keys, got 1"]),
        ({"name": "x", "free": {"a": {"b": [float("nan")]}}}, ["free.a.b[0]: expected", "got nan"]),
        ({"name": "x", "free": {1: 2}}, ["free: expected names with values"]),
        ({"name": "x", "free": {"a": object()}}, ["free.a: expected"]),
        ({"name": "x", "inner": {"chance": 10**400}}, ["inner.chance: expected a number from 0 to 1"]),
        ({"count": 1}, ["name: expected text", "it is missing"]),
    ],
)
def test_other_values_are_refused_by_name(values, words):
    with refused(*words):
        make(Outer, values)


@pytest.mark.fault("values from Python")
def test_free_values_have_a_bounded_depth():
    tree: dict = {}
    tree["itself"] = tree
    with refused("free.", "expected at most 8 levels"):
        Outer("x", free=tree)


LONG = {
    "text": "x" * 10**6,
    "list": list(range(10**5)),
    "dict": {str(i): i for i in range(10**5)},
    "number": 10**5000,
    "nested": [[["x" * 1000] * 9] * 9] * 9,
}


@pytest.mark.parametrize("name", LONG)
def test_long_values_are_cut_in_messages(name):
    value = LONG[name]
    assert len(shown(value)) < 1000
    with pytest.raises(FieldError) as caught:
        check(Annotated[float, Range(0, 1)], value, "key")
    assert "key: expected a number from 0 to 1" in str(caught.value) and len(str(caught.value)) < 1200


def test_of_a_long_message_the_middle_is_left_out():
    message = str(UserError("start" + "x" * 10**6 + "end"))
    assert message.startswith("start") and message.endswith("end") and len(message) < LONGEST_MESSAGE + 100
    assert str(UserError("short")) == "short" and str(pickle.loads(pickle.dumps(UserError("short")))) == "short"


def test_free_values_may_be_empty_texts():
    """timm's `stem_type` of a plain ResNet is one."""
    assert check(dict, {"stem_type": ""}, "backbone_kwargs") == {"stem_type": ""}
