"""The one base class of errors that are for users."""


class UserError(ValueError):
    """Something that a user can put right; the message says what was expected, what came and what to do."""
