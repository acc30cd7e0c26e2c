from subprocess import CompletedProcess

import pytest

from hssl_hf.errors import UserError
from tests.faults import EndedBadlyError, ends_well, refused


@pytest.mark.parametrize(
    ("error", "how"),
    [(UserError("a.b: expected 1, got 2"), None), (UserError("no"), "poor message"), (KeyError("a.b"), "traceback")],
)
def test_an_error_for_users_names_what_was_wrong(error, how):
    if how is None:
        with refused("a.b", "got 2"):
            raise error
        return
    with pytest.raises(EndedBadlyError) as caught, refused("a.b", "got 2"):
        raise error
    assert caught.value.how == how


def test_a_missing_error_is_distinguished_from_a_traceback():
    with pytest.raises(EndedBadlyError, match="silent"), refused("a.b"):
        pass
    with pytest.raises(EndedBadlyError, match="silent"):
        ends_well(CompletedProcess([], 0, "", ""), "a.b")
    with pytest.raises(EndedBadlyError, match="traceback"):
        ends_well(CompletedProcess([], 2, "", "Traceback (most recent call last)"), "a.b")
    ends_well(CompletedProcess([], 2, "", "error: a.b is wrong"), "A.B")
