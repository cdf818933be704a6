"""A run whose folder is at a URL: it works in one of this machine, and its files are sent there.

They are sent after each save, at a stop and at the end: whole files, only what changed. Checkpoints
go first, then `metrics.jsonl`, then `mirror.json`, the manifest, which names the files that belong
together; `result.json` goes last, and only then is deleted what the manifest no longer names. So a
reader never sees a result without its files, and whoever goes on with the run, on whatever machine,
takes what the manifest names.
"""

import contextlib
import dataclasses
import json
import logging
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bocb_jax.config import TrainConfig, run_id
from bocb_jax.engine.metrics import write_atomically
from bocb_jax.errors import FolderInUse, UserError
from bocb_jax.storage.lease import Lease, hold, owner_of
from bocb_jax.storage.lock import only_writer
from bocb_jax.storage.remote import MANIFEST, Store, scratch

logger = logging.getLogger(__name__)

LOOK = 1.0  # seconds between looks at whether something was saved
PATIENCE = 10  # looks
_OWN = ".mirror"  # what this machine knows of the URL; not sent
_RESULT = "result.json"


@contextlib.contextmanager
def working_here(config: TrainConfig) -> Iterator[TrainConfig]:
    """The config by which a run at a URL works here, while its files are sent there.

    Raises:
      FolderInUse: another process, here or elsewhere, is at this run.
      UserError: the URL cannot be read or written.
    """
    parallel = config.parallel
    if parallel.distributed or parallel.coordinator:
        raise UserError(
            f"The workdir is {config.workdir}, but the processes of one run need a folder that all "
            "of them see; give a path on a shared file system."
        )
    store = Store(config.workdir)
    name, runs = config.run_id or run_id(config), config.workdir
    if store.read(["config.json"]):  # the workdir is the run itself
        runs, _, name = store.url.rpartition("/")
    else:
        store = store.inside(name)
    folder = scratch(runs, config.scratch) / name
    taken = f"Another process is writing to {store.url}; wait for it."
    with only_writer(folder / _OWN, ".lock", taken):
        owner = owner_of(folder / _OWN)
        with hold(store, ".lock", owner, taken) as lease:
            mirror = Mirror(store, folder, lease)
            has_ended = mirror.pull()
            here = dataclasses.replace(config, workdir=str(folder.parent), run_id=name)
            with contextlib.nullcontext() if has_ended else mirror.sending():
                yield here
            mirror.tidy()


class Mirror:
    """A folder of this machine, and the one at a URL that is to be like it.

    Args:
      store: the folder at the URL.
      folder: the folder here.
      lease: asked before every sending.
    """

    def __init__(self, store: Store, folder: Path, lease: Lease):
        self._store, self._folder, self._lease = store, folder, lease
        self._memory = folder / _OWN / "sent.json"
        self._sent: dict[str, list[int]] = {}  # size and time of what is there as it is here
        self._lock = threading.Lock()

    def pull(self) -> bool:
        """Makes the folder here as far as the one there, or leaves it if it is further.

        Returns:
          Whether the run has ended; then its checkpoints are not brought.
        """
        found = self._store.read([MANIFEST, "config.json", _RESULT])
        manifest = json.loads(found.get(MANIFEST, b"{}"))
        result = json.loads(found.get(_RESULT, b"{}"))
        has_ended = result.get("status") in ("finished", "diverged")
        memory = _read(self._memory)
        if memory.get("version") == manifest.get("version"):  # nobody else has been at it
            self._sent = memory.get("sent", {})
        else:
            self._clear()
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
        for name in ("config.json", _RESULT):
            if name in found:
                (self._folder / name).write_bytes(found[name])
        return has_ended

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Sends what is saved inside the block, and all there is at its end."""
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:  # asked twice: do not wait any longer
            raise
        except BaseException as error:
            ended.set()
            thread.join()
            if not isinstance(error, FolderInUse):
                self._push_at_last()
            raise
        else:
            ended.set()
            thread.join()
            self._push_at_last()
        finally:
            ended.set()

    def push(self) -> bool:
        """Sends what has changed; False if files were deleted meanwhile, so that it is not all."""
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
            except FileNotFoundError:  # a checkpoint that has been superseded
                return False
            self._sent = files
            self._remember(version)
            self._store.remove(gone)
            return True

    def tidy(self) -> None:
        """Deletes the checkpoints here if the run has ended: a machine trains many runs."""
        if _read(self._folder / _RESULT).get("status") in ("finished", "diverged"):
            self._memory.unlink(missing_ok=True)
            shutil.rmtree(self._folder / "checkpoints", ignore_errors=True)

    def _push_at_last(self) -> None:
        if not (self._folder / "config.json").exists():
            return  # a setting was wrong
        try:
            while not self.push():
                pass
        except FolderInUse:
            raise
        except UserError as error:
            raise UserError(
                f"{error} What was saved is in {self._folder}, and the same command on this "
                "machine sends it."
            ) from error

    def _follow(self, ended: threading.Event) -> None:
        sent = before = None
        waited = 0
        while not ended.wait(LOOK):
            saved = self._saved()
            waited = waited + 1 if saved != sent else 0
            # The states and the best weights are saved side by side: nothing new for a while says
            # that both are there. A run that saves all the time is not waited for.
            if saved and saved != sent and (saved == before or waited > PATIENCE):
                try:
                    if self.push():
                        sent = saved
                except FolderInUse as error:
                    logger.warning("%s What is trained here is no longer sent.", error)
                    return
                except UserError as error:
                    logger.warning("%s", error)
                    ended.wait(10 * LOOK)  # the store may come back
            before = saved

    def _saved(self) -> tuple[str, ...] | None:
        """What checkpoints there are; None before the run has begun, or during a save."""
        if not (self._folder / "config.json").exists():
            return None
        names = [path.name for path in self._folder.glob("checkpoints/*/*")]
        if any("tmp" in name for name in names):
            return None
        return tuple(sorted(str(path) for path in self._folder.glob("checkpoints/*/*")))

    def _files(self) -> dict[str, list[int]]:
        """Size and time of change of every file that belongs to the run, by name."""
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

    def _remember(self, version: str | None, names: Any = None) -> None:
        if names is not None:
            files = self._files()
            self._sent = {name: files[name] for name in names if name in files}
        record = {"version": version, "sent": self._sent}
        write_atomically(self._memory, json.dumps(record))

    def _clear(self) -> None:
        """Deletes the run here, but for what this machine knows of the URL."""
        for path in self._folder.iterdir():
            if path.name == _OWN:
                self._memory.unlink(missing_ok=True)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
