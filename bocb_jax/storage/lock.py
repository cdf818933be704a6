"""A folder that one process at a time may write to; no JAX, for a sweep takes such a lock too."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from bocb_jax.errors import FolderInUse, UserError


@contextlib.contextmanager
def only_writer(folder: Path, name: str, taken: str) -> Iterator[None]:
    """Makes the folder, and keeps others who ask for the same lock out of it.

    The system lets go of the lock when this process ends, however it ends.

    Args:
      folder: made if it is not there.
      name: of the lock's file in it.
      taken: what to say where another process has the lock.

    Raises:
      FolderInUse: another process has the lock.
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
