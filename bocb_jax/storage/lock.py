"""A lock on a folder on disk: one process at a time writes to it."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from bocb_jax.errors import FolderInUse, UserError


def is_held(folder: Path, name: str) -> bool:
    """Return whether another process holds the lock on a folder."""
    try:
        with open(folder / name, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # held, or not readable
        return True
    return False


@contextlib.contextmanager
def only_writer(folder: Path, name: str, taken: str) -> Iterator[None]:
    """Make a folder and hold a lock on it inside the block.

    The operating system releases the lock when this process ends, however it ends.

    Args:
      folder: made if it does not exist.
      name: of the lock file in it.
      taken: the message if another process holds the lock.

    Raises:
      FolderInUse: another process holds the lock.
      UserError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / name, "w")  # noqa: SIM115 - held inside the block
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderInUse(taken) from error
        yield
