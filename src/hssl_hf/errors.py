"""The base class of errors that are for users, and how they show what came."""

import reprlib

LONGEST_MESSAGE, LAST = 1600, 400  # characters of a message, and of its end where the middle is left out
LONGEST_VALUE = 300  # characters of a value in a message

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel = 3


class UserError(ValueError):
    """Bad input that a user can correct; the message holds what was expected, what came and what to do.

    Of a message that is too long to be read, which repeats much of the input, the middle is left out.
    """

    def __init__(self, message: str):
        left_out = len(message) - LONGEST_MESSAGE
        if left_out > 0:
            start, end = message[: LONGEST_MESSAGE - LAST], message[-LAST:]
            message = f"{start} … ({left_out} characters left out) … {end}"
        super().__init__(message)


class EndedPeerError(UserError):
    """Another process of the run has ended, mostly on an error of its own, which is the one to report."""


def shown(value) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # of an integer that Python refuses to print
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
