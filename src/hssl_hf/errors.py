"""The one base class of errors that are for users."""


class UserError(ValueError):
    """Bad input that a user can correct; the message holds what was expected, what came and what to do."""
