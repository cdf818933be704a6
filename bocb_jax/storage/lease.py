"""A folder at a URL that one process at a time may write to; what `engine.lock` is on a disk.

Object stores have no locks that end with their holder. So the lock is a file that its holder writes
anew every few seconds: whoever finds one waits for a while, and takes it over if nothing happens.
No clocks are compared. What this cannot exclude: a holder that was cut off from the store, or
suspended, for longer than that wait. It finds the lock to be another's before it writes again, and
writes nothing more; only what it was just writing may come after the other's first files.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from bocb_jax.errors import FolderInUse, UserError
from bocb_jax.storage.remote import Store

logger = logging.getLogger(__name__)

BEAT = 5.0  # seconds between two signs of life
WAIT = 4 * BEAT  # without one, a lock is taken over


class Lease:
    """A lock that is held; see `hold`."""

    def __init__(self, store: Store, name: str, owner: str, taken: str):
        self._store, self._name, self._taken = store, name, taken
        self._record = {
            "owner": owner,
            "holding": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "beats": 0,
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def acquire(self) -> None:
        """Takes the lock, or takes it over from one who gives no sign of life.

        Raises:
          FolderInUse: another process holds it.
        """
        while not self._store.create(self._name, self._encoded()):
            found = self._found()
            if found is None:  # let go of just now
                continue
            # Who has the same owner was a process of this machine, and of them there is one.
            if found.get("owner") != self._record["owner"]:
                self._watch(found)
            self._store.remove([self._name])
        self._thread.start()

    def check(self) -> None:
        """Returns if the lock is still this process's.

        Raises:
          FolderInUse: another has taken it over.
        """
        found = self._found()
        if found is None or found.get("holding") != self._record["holding"]:
            raise FolderInUse(self._taken)

    def release(self) -> None:
        """Lets go of it."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(UserError):
            self.check()
            self._store.remove([self._name])

    def _watch(self, found: dict) -> None:
        logger.warning(
            "%s/%s is held by process %s on %s; waiting whether it is alive.",
            self._store.url,
            self._name,
            found.get("process"),
            found.get("host"),
        )
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            time.sleep(BEAT / 5)
            now = self._found()
            if now is None:
                return
            if now != found:
                raise FolderInUse(self._taken)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self.check()
                self._record["beats"] += 1
                self._store.write(self._name, self._encoded())
            except FolderInUse:
                return
            except UserError as error:  # the store is away; it may come back
                logger.warning("%s", error)

    def _found(self) -> dict | None:
        content = self._store.read([self._name]).get(self._name)
        if content is None:
            return None
        try:
            return json.loads(content)
        except ValueError:
            return {"unreadable": content.hex()}

    def _encoded(self) -> bytes:
        return json.dumps(self._record).encode()


@contextlib.contextmanager
def hold(store: Store, name: str, owner: str, taken: str) -> Iterator[Lease]:
    """Keeps others who ask for the same lock out of a folder.

    Args:
      store: the folder.
      name: of the lock's file in it.
      owner: what only one process at a time can be; it takes over its own lock at once.
      taken: what to say where another process has the lock.

    Raises:
      FolderInUse: another process has it.
      UserError: the folder cannot be written.
    """
    lease = Lease(store, name, owner, taken)
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


def owner_of(folder) -> str:
    """A name for whoever may write to a folder of this machine, the same at every start."""
    path = folder / ".owner"
    with contextlib.suppress(OSError):
        if owner := path.read_text(encoding="utf-8"):
            return owner
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")
