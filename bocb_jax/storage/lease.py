"""A lock on a folder at a URL, as `storage.lock` is on a disk.

Object stores have no locks that end with their holder. So the lock is a file that its holder
rewrites every few seconds: whoever finds one waits for a while, and takes it over if it stays the
same. No clocks are compared.

One case remains: a holder that was suspended, or cut off from the store, for longer than that wait.
It checks the lock before it writes again, finds it to be another's and writes nothing more; only
what it was just writing may arrive after the other's first files.
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
from pathlib import Path
from typing import Any

from bocb_jax.errors import FolderInUse, UserError
from bocb_jax.storage.files import decode_object, read_text
from bocb_jax.storage.remote import Store

logger = logging.getLogger(__name__)

BEAT = 5.0  # seconds between two heartbeats
WAIT = 4 * BEAT  # without one, the lock is taken over


class Lease:
    """A lock that is held; see `hold`."""

    def __init__(self, store: Store, name: str, owner: str, taken: str):
        self._store, self._name, self._taken = store, name, taken
        self._content: dict[str, Any] = {
            "owner": owner,
            "holding": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "beats": 0,
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def acquire(self) -> None:
        """Take the lock, or take it over from a holder that has no heartbeat.

        Raises:
          FolderInUse: another process holds it.
        """
        while not self._store.create(self._name, self._encoded()):
            found = self._found()
            if found is None:  # released just now
                continue
            # The same owner: an earlier process of this machine, of which there is one at a time.
            if found.get("owner") != self._content["owner"]:
                self._watch(found)
            self._store.remove([self._name])
        self._thread.start()

    def check(self) -> None:
        """Return if this process still holds the lock.

        Raises:
          FolderInUse: another process has taken it over.
        """
        found = self._found()
        if found is None or found.get("holding") != self._content["holding"]:
            raise FolderInUse(self._taken)

    def release(self) -> None:
        """Give the lock back."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(UserError):
            self.check()
            self._store.remove([self._name])

    def _watch(self, found: dict[str, Any]) -> None:
        logger.warning(
            "%s/%s is held by process %s on %s; waiting to see whether that is alive.",
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
                self._content["beats"] += 1
                self._store.write(self._name, self._encoded())
            except FolderInUse:
                return
            except UserError as error:  # the store is away; it may come back
                logger.warning("%s", error)

    def _found(self) -> dict[str, Any] | None:
        content = self._store.read([self._name]).get(self._name)
        if content is None:
            return None
        try:
            return decode_object(content, self._name)
        except UserError:
            return {"unreadable": content.hex()}

    def _encoded(self) -> bytes:
        return json.dumps(self._content).encode()


@contextlib.contextmanager
def hold(store: Store, name: str, owner: str, taken: str) -> Iterator[Lease]:
    """Hold a lock on a folder at a URL inside the block.

    Args:
      store: the folder.
      name: of the lock's file in it.
      owner: a name that one process at a time has; it takes over its own lock at once.
      taken: the message if another process holds the lock.

    Raises:
      FolderInUse: another process holds the lock.
      UserError: the URL cannot be written.
    """
    lease = Lease(store, name, owner, taken)
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


def owner_of(folder: Path) -> str:
    """Return a name for the writer of a folder on this machine, the same at every start."""
    path = folder / ".owner"
    with contextlib.suppress(FileNotFoundError, UserError):  # a damaged name is replaced
        if owner := read_text(path, 1024):
            return owner
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")
