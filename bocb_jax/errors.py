"""Errors for users: sentences that say what is wrong, where, and what to do."""

import os
import traceback


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
    """A signal asked the run to stop.

    Args:
      message: for the user.
      signal_number: which it was.
      saved: whether all processes of the run have saved its state and stop with this one.
    """

    def __init__(self, message: str, *, signal_number: int, saved: bool = True):
        super().__init__(message)
        self.saved = saved
        self.exit_code = 128 + signal_number


def described(error: BaseException) -> str:
    """Return an error of the user's own code in a few words: type, message, file and line."""
    message = str(error).strip().partition("\n")[0][:200].rstrip(". ")
    here = os.path.dirname(os.path.abspath(__file__))
    libraries = ("<", here, os.path.join(os.path.dirname(here), "models"))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(libraries) and "site-packages" not in frame.filename
    ]
    where = (
        f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    )
    return f"{type(error).__name__}: {message}{where}" if message else type(error).__name__ + where
