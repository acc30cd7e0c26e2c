"""What licenses require, by their names on the Hub."""

import pytest

from hssl_hf.publish.licenses import conditions, is_non_commercial


@pytest.mark.parametrize(
    "names",
    [
        ("cc-by-nc-4.0",),
        ("cc-by-nc-sa-4.0",),
        ("cc-by-nc-nd-3.0",),
        ("CC-BY-NC-4.0",),
        ("apple-amlr",),
        ("intel-research",),
        ("fair-noncommercial-research-license",),
        ("other", "My Non-Commercial License"),
        ("other", "non_commercial"),
        ("other", "model-nc-1.0"),
    ],
)
def test_non_commercial(names):
    assert is_non_commercial(*names)


@pytest.mark.parametrize(
    "names",
    [("apache-2.0", None), ("cc-by-4.0",), ("ncsa",), ("cc-by-sa-4.0",), ("other", "dinov3-license"), ("openrail",), ()],
)
def test_not_known_to_be_non_commercial(names):
    assert not is_non_commercial(*names)


ORDERED = [  # the second has all conditions of the first
    ("cc0-1.0", "mit"),
    ("mit", "apache-2.0"),
    ("apache-2.0", "mit"),
    ("apache-2.0", "cc-by-nc-4.0"),
    ("apache-2.0", "gpl-3.0"),
    ("apache-2.0", "other"),
    ("cc-by-4.0", "cc-by-sa-4.0"),
    ("cc-by-nc-4.0", "CC-BY-NC-SA-4.0"),
    ("openrail", "openrail"),
]
MORE_PERMISSIVE = [
    ("mit", "cc0-1.0"),
    ("cc-by-nc-4.0", "apache-2.0"),
    ("cc-by-nc-4.0", "cc-by-4.0"),
    ("cc-by-nc-sa-4.0", "cc-by-nc-4.0"),
    ("cc-by-nc-4.0", "other"),
    ("gpl-3.0", "mit"),
    ("gpl-3.0", "cc-by-nc-4.0"),
    ("other", "apache-2.0"),
    ("openrail", "other"),
]


@pytest.mark.parametrize(("first", "second"), ORDERED)
def test_conditions_that_are_kept(first, second):
    assert conditions(first) <= conditions(second)


@pytest.mark.parametrize(("first", "second"), MORE_PERMISSIVE)
def test_conditions_that_would_be_lost(first, second):
    assert not conditions(first) <= conditions(second)
