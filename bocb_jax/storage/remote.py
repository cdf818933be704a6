"""Folders of runs at a URL, such as s3://bucket/runs or gs://bucket/runs, through fsspec.

A `Store` is such a folder: files are written whole and many are read at once. A `Workdir` is where
a sweep keeps its runs, here or there; of one that is there it holds the small files that plans and
tables are made of. `brought` copies what an analysis reads.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bocb_jax.errors import UserError

MANIFEST = "mirror.json"  # of a run: which of its files belong together, see `engine.mirror`
RECORDS = ("config.json", "result.json")
_TOGETHER = 2000  # files asked for at once
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2")
_EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL and not a path of this machine."""
    return "://" in str(place)


class Store:
    """A folder at a URL; names of files are relative to it, with slashes.

    Raises:
      UserError: there is no driver for it. All methods: it cannot be reached, or not be written.
    """

    def __init__(self, url: str):
        import fsspec

        self.url = str(url).rstrip("/")
        protocol = self.url.partition("://")[0]
        # Nothing is remembered of what lay there: others write to it.
        options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
        try:
            self._fs, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **options)
        except ImportError as error:
            package = _EXTRAS.get(protocol)
            remedy = (
                f"pip install 'bocb-jax[remote]', or {package} alone" if package else str(error)
            )
            raise UserError(f"{self.url} needs a driver that is not installed: {remedy}.") from None
        except ValueError as error:
            raise UserError(f"{self.url} is no URL that fsspec knows: {error}.") from error
        self._path = path.rstrip("/")

    def inside(self, name: str) -> "Store":
        """A folder in this one."""
        return Store(f"{self.url}/{name}")

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of those of some files that are there."""
        found, names = {}, list(names)
        for first in range(0, len(names), _TOGETHER):
            part = {self._full(name): name for name in names[first : first + _TOGETHER]}
            with self._telling("read"):
                contents = self._fs.cat(list(part), on_error="return")
                for path, content in contents.items():
                    if isinstance(content, bytes):
                        found[part[path]] = content
                    elif not isinstance(content, FileNotFoundError):
                        raise content
        return found

    def write(self, name: str, content: bytes) -> None:
        """Writes a file whole, over one that is there."""
        with self._telling("written"):
            self._make_parent(name)
            self._fs.pipe_file(self._full(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file unless it is there; False where it is.

        Stores that know no such thing are asked first, which leaves a moment in between.
        """
        path = self._full(name)
        with self._telling("written"):
            self._make_parent(name)
            try:
                self._fs.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except (TypeError, ValueError, NotImplementedError):
                if self._fs.exists(path):
                    return False
                self._fs.pipe_file(path, content)
        return True

    def upload(self, folder: Path, names: Iterable[str]) -> None:
        """Copies files of a folder of this machine to the same names, many at a time.

        Raises:
          FileNotFoundError: one is gone meanwhile; some may have been copied.
        """
        names = list(names)
        if not names:
            return
        sources, targets = [str(folder / n) for n in names], [self._full(n) for n in names]
        try:
            with self._telling("written"):
                self._fs.put(sources, targets)
        except UserError:
            for source in sources:
                os.stat(source)
            raise

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Copies files into a folder of this machine, many at a time."""
        names = list(names)
        if not names:
            return
        for name in names:
            if ".." in name.split("/") or name.startswith("/"):
                raise UserError(f"{self.url} names a file '{name}', which leads out of its folder.")
        for parent in {(folder / name).parent for name in names}:
            parent.mkdir(parents=True, exist_ok=True)
        with self._telling("read"):
            self._fs.get([self._full(n) for n in names], [str(folder / name) for name in names])

    def remove(self, names: Iterable[str]) -> None:
        """Deletes files; one that is not there is no matter."""
        paths = [self._full(name) for name in names]
        if not paths:
            return
        with self._telling("written"):
            try:
                self._fs.rm(paths)
            except FileNotFoundError:
                for path in paths:
                    with contextlib.suppress(FileNotFoundError):
                        self._fs.rm(path)

    def folders(self) -> list[str]:
        """Names of the folders right in it that are not hidden, from one listing."""
        with self._telling("read"):
            try:
                entries = self._fs.ls(self._path, detail=True)
            except FileNotFoundError:
                return []
        folders = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"]
        names = [path.rpartition("/")[2] for path in folders]
        return sorted(name for name in names if not name.startswith("."))

    def files(self, under: str = "") -> list[str]:
        """Names of all the files in it, however deep, from one listing."""
        with self._telling("read"):
            try:
                found = self._fs.find(self._full(under) if under else self._path)
            except FileNotFoundError:
                return []
        return sorted(path.removeprefix(self._path + "/") for path in found)

    def _full(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _make_parent(self, name: str) -> None:
        # Object stores have no folders; asked for one, drivers make a bucket of a misspelt name.
        if self.url.partition("://")[0] not in _BUCKETS:
            self._fs.makedirs(self._full(name).rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # drivers raise of many kinds
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"{self.url} cannot be {what}: {reason}.") from error


def scratch_dir(url: str, folder: str | None = None) -> Path:
    """The folder of this machine for the runs at a URL; every URL has its own.

    Args:
      url: of the folder of runs.
      folder: where such folders go; None for the user's cache.
    """
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "bocb_jax" / "runs"
    digest = hashlib.sha256(str(url).rstrip("/").encode()).hexdigest()[:12]
    return Path(folder).expanduser().absolute() / digest


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A folder of runs, here or at a URL.

    Attributes:
      where: what the user calls it, and the workers are told.
      path: the folder here; of one at a URL it holds the records alone.
      store: the folder at the URL.
    """

    where: str | Path
    path: Path
    store: Store | None = None

    @classmethod
    def at(cls, where: str | Path, scratch_folder: str | None = None) -> "Workdir":
        """Of a path or a URL."""
        if not is_url(where):
            return cls(Path(where), Path(where))
        return cls(
            str(where), scratch_dir(str(where), scratch_folder) / ".records", Store(str(where))
        )

    def pull(self) -> None:
        """Brings the records of all runs: one listing, and the files together."""
        if self.store is None:
            return
        runs = self.store.folders()
        self._take(runs, self.store.read(f"{run}/{name}" for run in runs for name in RECORDS))
        self.path.mkdir(parents=True, exist_ok=True)
        for entry in os.scandir(self.path):
            if entry.is_dir() and not entry.name.startswith(".") and entry.name not in set(runs):
                shutil.rmtree(entry.path)

    def fetch(self, run: str) -> None:
        """Brings the records of one run."""
        if self.store is not None:
            names = (*RECORDS, MANIFEST)
            self._take([run], self.store.read(f"{run}/{name}" for name in names))

    def bring(self, name: str) -> None:
        """Brings a file that lies beside the runs, if it is there."""
        content = self.store and self.store.read([name]).get(name)
        if content:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(content)

    def publish(self, *names: str) -> None:
        """Files that were written here go where they belong."""
        if self.store is not None:
            self.store.upload(self.path, names)

    def _take(self, runs: list[str], contents: dict[str, bytes]) -> None:
        for run in runs:
            for name in (*RECORDS, MANIFEST):
                path = self.path / run / name
                content = contents.get(f"{run}/{name}")
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)


def saved_steps(folder: Path) -> list[int]:
    """The steps whose states a run has saved, as its folder or its manifest says."""
    saved = [path.name for path in (folder / "checkpoints" / "last").glob("*")]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        saved += [n.split("/")[2] for n in files if n.startswith("checkpoints/last/")]
    return sorted({int(name) for name in saved if name.isdigit()})


@contextlib.contextmanager
def brought(source: Any, *, weights: bool = False) -> Iterator[Any]:
    """A path of this machine for what lies at a path or a URL; a copy is gone after the block.

    Args:
      source: a path, which is given back; or the URL of a file, a run, or a folder of runs.
      weights: whether the best weights of the runs are brought, or else what reports are made of.

    Raises:
      UserError: there is nothing at the URL.
    """
    if source is None or not is_url(source):
        yield source
        return
    url = str(source).rstrip("/")
    with tempfile.TemporaryDirectory(prefix="bocb_jax-") as temporary:
        parent, _, name = url.rpartition("/")
        if Path(name).suffix in _FILES:
            Store(parent).download([name], Path(temporary))
            yield Path(temporary) / name
            return
        store, folder = Store(url), Path(temporary) / name
        if weights:
            store.download(filter(_is_of_weights, store.files()), folder)
        else:
            _bring_records(store, folder)
        if not folder.is_dir():
            raise UserError(f"There is nothing at {url}.")
        yield folder


def _is_of_weights(name: str) -> bool:
    is_file = Path(name).suffix in _FILES or name.endswith("config.json")
    return is_file or "checkpoints/best/" in name


def _bring_records(store: Store, folder: Path) -> None:
    """The records of all runs, and what the final ones logged, which reports draw."""
    prefixes = ["", *(f"{run}/" for run in store.folders())]
    found = store.read(["study.json", *(p + name for p in prefixes for name in RECORDS)])
    finals = [
        prefix
        for prefix in prefixes
        if b'"test": false' not in found.get(f"{prefix}config.json", b'"test": false')
    ]
    found |= store.read(f"{prefix}metrics.jsonl" for prefix in finals)
    for name, content in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


_FILES = (".parquet", ".csv", ".safetensors", ".pth", ".pt", ".bin")
