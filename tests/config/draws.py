"""Strategies of hypothesis from declarations: values that a field allows, and values that it does not."""

import math
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from hypothesis import strategies as st

from hssl_hf.fields import Ascending, Distinct, Length, Range, Section

TEXTS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
OF_OTHER_TYPES = {
    bool: st.sampled_from([0, 1, "yes", "true", [], {}, math.nan]),
    int: st.one_of(NOT_FINITE, st.sampled_from([True, False, "3", "", 0.5, [], [3], {}, {"a": 3}])),
    float: st.one_of(NOT_FINITE, st.sampled_from([True, False, "0.5", "", [], [0.5], {}, 10**400])),
    str: st.sampled_from(["", " ", "a\nb", "a\0", "\udc80", "x" * 5000, 3, 0.5, True, [], ["a"], {}]),
    dict: st.sampled_from([[], "a", 3, True, {"a": math.nan}, {"a": {"b": [math.inf]}}, {3: 4}, {"": 1}, {"a": object()}]),
}


def options_of(kind) -> tuple:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def split(kind) -> tuple:
    return (kind.__origin__, kind.__metadata__) if get_origin(kind) is Annotated else (kind, ())


def conditions_of(kind) -> Iterator:
    """All conditions of a declaration and of its parts."""
    for option in options_of(kind):
        bare, conditions = split(option)
        yield from conditions
        for part in get_args(bare) if get_origin(bare) in (tuple, dict) else ():
            yield from conditions_of(part)


def numbers(kind: type, limits: Range) -> st.SearchStrategy:
    """Numbers inside a range, mostly near its ends."""
    if kind is int:
        return st.integers(limits.least, limits.most)
    low, high = (limits.least, limits.above), (limits.most, limits.below)
    least, most = (next((bound for bound in pair if bound is not None), None) for pair in (low, high))
    bounds = {"exclude_min": limits.above is not None, "exclude_max": limits.below is not None}
    return st.floats(least, most, allow_nan=False, allow_infinity=False, **bounds).filter(lambda x: x in limits)


def numbers_outside(kind: type, limits: Range) -> st.SearchStrategy:
    is_int = kind is int
    draws = []
    low = limits.least if limits.least is not None else limits.above
    high = limits.most if limits.most is not None else limits.below
    if low is not None:
        draws.append(st.integers(max_value=math.ceil(low) - 1) if is_int else st.floats(max_value=low, allow_infinity=False))
    if high is not None:
        draws.append(st.integers(min_value=math.floor(high) + 1) if is_int else st.floats(min_value=high, allow_infinity=False))
    return st.one_of(draws).filter(lambda x: x not in limits)


def outside(kind) -> st.SearchStrategy:
    """Values that a declaration does not allow, most of them of the right type."""
    options = options_of(kind)
    if len(options) > 1:
        draws = st.one_of([outside(option) for option in options if option is not NoneType])
        kinds = [split(option)[0] for option in options]
        if NoneType in kinds:
            draws = draws.filter(lambda value: value is not None)
        return draws.filter(lambda value: value != ["a"]) if str in kinds else draws  # allowed by the other option
    bare, conditions = split(kind)
    if get_origin(bare) is Literal:
        choices = get_args(bare)
        return st.one_of(TEXTS, st.sampled_from([0, 1.5, True, None, [], {}])).filter(lambda value: value not in choices)
    if get_origin(bare) is tuple:
        return _lists_outside(bare, conditions)
    if get_origin(bare) is dict:
        return st.one_of(st.sampled_from([3, "a", [], None]), *_trees(outside(get_args(bare)[1])))
    if isinstance(bare, type) and issubclass(bare, Section):
        return st.sampled_from([3, "a", [], None, {"no_such_key": 1}])
    if bare is object:
        return st.nothing()
    ranges = [numbers_outside(bare, condition) for condition in conditions if isinstance(condition, Range)]
    return st.one_of([*ranges, OF_OTHER_TYPES[bare]])


def _trees(values: st.SearchStrategy) -> list[st.SearchStrategy]:
    return [] if values.is_empty else [values.map(lambda value: {"a": value})]


def _lists_outside(bare, conditions) -> st.SearchStrategy:
    parts = get_args(bare)
    fixed = parts[-1] is not Ellipsis
    good, bad = inside(parts[0]), outside(parts[0])
    draws = [st.sampled_from([3, "ab", {}, True]), bad.map(lambda value: [value])]
    if fixed:
        draws += [st.lists(good, max_size=len(parts) - 1), st.lists(good, min_size=len(parts) + 1, max_size=9)]
        draws.append(st.tuples(*[good] * (len(parts) - 1), bad))
    for condition in conditions:
        if isinstance(condition, Length):
            draws.append(st.lists(good, min_size=condition.most + 1, max_size=condition.most + 3))
            draws.append(st.lists(good, max_size=condition.least - 1) if condition.least else st.nothing())
        if isinstance(condition, Ascending):
            draws.append(st.tuples(good, good).filter(lambda pair: pair[0] > pair[1]))
        if isinstance(condition, Distinct):
            draws.append(good.map(lambda value: [value, value]))
    return st.one_of(draws)


def inside(kind) -> st.SearchStrategy:
    """Values that a declaration allows."""
    options = options_of(kind)
    if len(options) > 1:
        return st.one_of([inside(option) for option in options])
    bare, conditions = split(kind)
    if get_origin(bare) is Literal:
        return st.sampled_from(get_args(bare))
    if get_origin(bare) is tuple:
        return _lists_inside(bare, conditions)
    if get_origin(bare) is dict:
        return st.dictionaries(TEXTS, inside(get_args(bare)[1]), max_size=2)
    if isinstance(bare, type) and issubclass(bare, Section):
        return st.just({})
    if bare in (int, float):
        limits = next((condition for condition in conditions if isinstance(condition, Range)), Range())
        return numbers(bare, limits)
    return {bool: st.booleans(), str: TEXTS, NoneType: st.none(), dict: st.just({}), object: st.integers()}[bare]


def _lists_inside(bare, conditions) -> st.SearchStrategy:
    parts = get_args(bare)
    if parts[-1] is not Ellipsis:
        draws = st.tuples(*map(inside, parts))
    else:
        length = next((condition for condition in conditions if isinstance(condition, Length)), Length(0, 4))
        unique = any(isinstance(condition, Distinct) for condition in conditions)
        draws = st.lists(inside(parts[0]), min_size=length.least, max_size=min(4, length.most), unique=unique)
    ascending = any(isinstance(condition, Ascending) for condition in conditions)
    return draws.map(lambda values: sorted(values) if ascending else list(values))
