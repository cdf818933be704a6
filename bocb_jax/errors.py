"""Errors for users: a sentence that says what is wrong, where, and what to do."""


class UserError(Exception):
    """Something the user can put right. Doors print the message, without a traceback, and exit 2."""

    exit_code = 2


class UnknownName(UserError, LookupError):
    """A name that no registry knows; the message lists near matches."""


class Diverged(UserError):
    """A run whose loss stopped being finite."""

    exit_code = 3
