"""Errors for users: a sentence that says what is wrong, where, and what to do."""


class UserError(Exception):
    """Something the user can put right; doors print the message alone, and exit 2."""

    exit_code = 2


class UnknownName(UserError, LookupError):
    """A name that no registry knows; the message lists near matches."""


class DatasetMissing(UserError):
    """A data set that is not on this machine, where nothing may be fetched."""


class FolderInUse(UserError):
    """Another process is writing there; it may soon be done."""


class Diverged(Exception):
    """The loss, or the gradient, stopped being finite."""

    exit_code = 3

    def __init__(self, message: str, *, step: int):
        super().__init__(message)
        self.step = step


class Interrupted(Exception):
    """The run was asked to stop by a signal, and has saved its state."""

    def __init__(self, message: str, *, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
