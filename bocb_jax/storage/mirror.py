"""The mirror of a run directory at a URL: the run works on this machine, its files are sent there.

Files are sent whole, and only those that changed: after each save, when the run is stopped, and at
its end. The order is: checkpoints; then `metrics.jsonl`; then the manifest `mirror.json`, which
names the files that belong together; then `result.json`. Only after that are files deleted that the
manifest no longer names. A reader therefore never sees a result without its files, and a machine
that resumes the run downloads what the manifest names.
"""

import contextlib
import json
import logging
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from bocb_jax.errors import FolderInUse, UserError
from bocb_jax.storage.files import decode_object, read_json, write_atomically
from bocb_jax.storage.lease import hold, owner_of
from bocb_jax.storage.lock import only_writer
from bocb_jax.storage.remote import MANIFEST, Store, scratch_dir

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # between looks for a new checkpoint
MAX_POLLS = 10  # after which a run that saves without a pause is sent nevertheless
_PRIVATE = ".mirror"  # what this machine knows about the URL; never sent
_RESULT = "result.json"


class Lock(Protocol):
    """A lock that can be lost to another machine."""

    def check(self) -> None: ...


@contextlib.contextmanager
def mirrored(url: str, run: str, scratch: str | None = None) -> Iterator[Path]:
    """Yield the folder on this machine that mirrors a run directory at a URL.

    What is saved there inside the block is sent to the URL, and everything at the end of the block.

    Args:
      url: URL of a folder of runs, or of the run directory itself.
      run: name of the run directory in that folder of runs.
      scratch: folder on this machine for such mirrors; None for the user's cache.

    Raises:
      FolderInUse: another process, on this machine or another, works on the run.
      UserError: the URL cannot be read or written.
    """
    store = Store(url)
    if store.read(["config.json"]):  # the URL is that of the run itself
        url, _, run = store.url.rpartition("/")
    else:
        store = store.inside(run)
    folder = scratch_dir(url, scratch) / run
    taken = f"Another process is writing to {store.url}; wait until it has ended."
    with only_writer(folder / _PRIVATE, ".lock", taken):
        owner = owner_of(folder / _PRIVATE)
        with hold(store, ".lock", owner, taken) as lease:
            mirror = Mirror(store, folder, lease)
            has_ended = mirror.pull()
            with contextlib.nullcontext() if has_ended else mirror.sending():
                yield folder
            mirror.tidy()


class Mirror:
    """A folder on this machine and the folder at a URL that is kept like it.

    Args:
      store: the folder at the URL.
      folder: the folder on this machine.
      lock: the lock on the URL; checked before anything is sent.
    """

    def __init__(self, store: Store, folder: Path, lock: Lock):
        self._store, self._folder, self._lease = store, folder, lock
        self._memory = folder / _PRIVATE / "sent.json"
        self._sent: dict[str, list[int]] = {}  # name -> size and mtime of the file as it was sent
        self._lock = threading.Lock()

    def pull(self) -> bool:
        """Download the run if the URL is ahead of this machine; otherwise keep what is here.

        Returns:
          Whether the run has ended. The checkpoints of such a run are not downloaded.
        """
        found = self._store.read([MANIFEST, "config.json", _RESULT])
        objects = {n: decode_object(found[n], f"{self._store.url}/{n}") for n in found}
        manifest = self._checked(objects.get(MANIFEST, {}))
        has_ended = objects.get(_RESULT, {}).get("status") in ("finished", "diverged")
        memory = _read(self._memory)
        if memory.get("version") == manifest.get("version"):  # no other machine has sent since
            sent = memory.get("sent")
            self._sent = sent if isinstance(sent, dict) else {}
        else:
            self._clear()
            self._download(manifest, has_ended)
        for name in ("config.json", _RESULT):
            if name in found:
                (self._folder / name).write_bytes(found[name])
        return has_ended

    def _checked(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Return a manifest; raise a UserError if it is none."""
        files, version = manifest.get("files", {}), manifest.get("version", "")
        if isinstance(files, dict) and isinstance(version, str):
            sizes = [size for size in files.values() if type(size) is int]
            if len(sizes) == len(files) and bool(files) == bool(version):
                return manifest
        raise UserError(
            f"{self._store.url}/{MANIFEST} is no list of a run's files; was it edited? Delete that "
            "folder to train the run anew."
        )

    def _download(self, manifest: dict[str, Any], has_ended: bool) -> None:
        files = manifest.get("files", {})
        wanted = [n for n in files if not (has_ended and n.startswith("checkpoints/"))]
        self._store.download(wanted, self._folder)
        torn = [n for n in wanted if (self._folder / n).stat().st_size < files[n]]
        if torn:
            raise UserError(
                f"{self._store.url}/{torn[0]} is shorter than its manifest says; delete that "
                "folder to train the run anew."
            )
        if not has_ended:
            there = self._store.files("checkpoints")
            self._store.remove(name for name in there if name not in files)
            self._remember(manifest["version"] if manifest else None, wanted)

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Send each save made inside the block, and every file at its end."""
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:  # the second signal: stop without waiting for the network
            raise
        except BaseException as error:
            ended.set()
            thread.join()
            if not isinstance(error, FolderInUse):
                self._push_everything()
            raise
        else:
            ended.set()
            thread.join()
            self._push_everything()
        finally:
            ended.set()

    def push(self) -> bool:
        """Send what has changed.

        Returns:
          False if a file vanished while it was sent, so that another push is needed.

        Raises:
          FolderInUse: another machine has taken the lock over; nothing was sent.
          UserError: the URL cannot be written.
        """
        with self._lock:
            files = self._files()
            changed = {n for n, about in files.items() if self._sent.get(n) != about}
            gone = [name for name in self._sent if name not in files]
            if not changed and not gone:
                return True
            self._lease.check()
            late = {n for n in changed if not n.startswith("checkpoints/")} - {"config.json"}
            try:
                self._store.upload(self._folder, sorted(changed - late))
                self._store.upload(self._folder, sorted(late - {_RESULT}))
                sizes = {name: size for name, (size, _) in files.items() if name != _RESULT}
                version = uuid.uuid4().hex
                manifest = json.dumps({"version": version, "files": sizes})
                self._store.write(MANIFEST, manifest.encode())
                self._store.upload(self._folder, late & {_RESULT})
            except FileNotFoundError:  # a checkpoint that newer ones have superseded
                return False
            self._sent = files
            self._remember(version)
            self._store.remove(gone)
            return True

    def tidy(self) -> None:
        """Delete the local checkpoints of a run that has ended: one machine trains many runs."""
        if _read(self._folder / _RESULT).get("status") in ("finished", "diverged"):
            self._memory.unlink(missing_ok=True)
            shutil.rmtree(self._folder / "checkpoints", ignore_errors=True)

    def _push_everything(self) -> None:
        if not (self._folder / "config.json").exists():
            return  # a setting was wrong and nothing was trained
        try:
            while not self.push():
                pass
        except FolderInUse:
            raise
        except UserError as error:
            raise UserError(
                f"{error} The run is saved in {self._folder}; the same command on this machine "
                "sends it."
            ) from error

    def _follow(self, ended: threading.Event) -> None:
        sent = before = None
        polls = 0
        while not ended.wait(POLL_SECONDS):
            saved = self._saved()
            polls = polls + 1 if saved != sent else 0
            # The last state and the best weights are saved side by side. Two equal looks in a row
            # mean that both are complete; a run that saves all the time is sent after MAX_POLLS.
            if saved and saved != sent and (saved == before or polls > MAX_POLLS):
                try:
                    if self.push():
                        sent = saved
                except FolderInUse as error:
                    logger.warning("%s This machine no longer sends what it trains.", error)
                    return
                except UserError as error:
                    logger.warning("%s", error)
                    ended.wait(10 * POLL_SECONDS)  # the store may come back
            before = saved

    def _saved(self) -> tuple[str, ...] | None:
        """Return the checkpoints there are; None before the run starts and during a save."""
        if not (self._folder / "config.json").exists():
            return None
        names = [path.name for path in self._folder.glob("checkpoints/*/*")]
        if any("tmp" in name for name in names):
            return None
        looked_at = ("checkpoints/*/*", "checkpoints/*/*/checksums*")
        return tuple(sorted(str(path) for name in looked_at for path in self._folder.glob(name)))

    def _files(self) -> dict[str, list[int]]:
        """Return size and modification time (ns) of every file of the run, by name."""
        found = {}
        for path in self._folder.rglob("*"):
            parts = path.relative_to(self._folder).parts
            if any(part.startswith(".") for part in parts):
                continue
            if parts[0] == "checkpoints" and not (len(parts) > 3 and parts[2].isdigit()):
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    status = path.stat()
                    found["/".join(parts)] = [status.st_size, status.st_mtime_ns]
        return found

    def _remember(self, version: str | None, names: Iterable[str] | None = None) -> None:
        if names is not None:
            files = self._files()
            self._sent = {name: files[name] for name in names if name in files}
        write_atomically(self._memory, json.dumps({"version": version, "sent": self._sent}))

    def _clear(self) -> None:
        """Delete the run on this machine, but keep the lock and the owner's name."""
        for path in self._folder.iterdir():
            if path.name == _PRIVATE:
                self._memory.unlink(missing_ok=True)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _read(path: Path) -> dict[str, Any]:
    # A memory that is damaged is as good as none: the run is downloaded again.
    try:
        return read_json(path) or {}
    except UserError:
        return {}
