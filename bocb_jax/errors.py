"""Errors for users: sentences that say what is wrong, where, and what to do."""


class UserError(Exception):
    """Something the user can put right; `bocb` prints the message alone and exits with 2."""

    exit_code = 2


class UnknownName(UserError, LookupError):
    """A name that a registry does not know; the message lists near matches."""


class DatasetMissing(UserError):
    """A data set that is not on this machine and may not be downloaded."""


class FolderInUse(UserError):
    """Another process is writing to a folder; it may be done soon."""


class Diverged(Exception):
    """The loss or the gradient is no longer finite."""

    exit_code = 3

    def __init__(self, message: str, *, step: int):
        super().__init__(message)
        self.step = step


class Interrupted(Exception):
    """A signal asked the run to stop, and its state is saved."""

    def __init__(self, message: str, *, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
