"""Folders of runs at a URL, such as s3://bucket/runs or gs://bucket/runs, through fsspec.

A `Store` is such a folder: files are written whole, and many are read at once. A `Workdir` is the
folder of a sweep's runs, on this machine or at a URL; in the second case it keeps copies of the
small files from which plans and tables are made. `local_copy` downloads what an analysis reads.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_json

MANIFEST = "mirror.json"  # of a run: the files that belong together; see `mirror`
RUN_FILES = ("config.json", "result.json")  # small files of every run directory
_BATCH = 2000  # files read at once
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2")
_TABLES = (".parquet", ".csv", ".tsv", ".txt", ".json", ".jsonl")
_EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


def is_url(path: str | Path) -> bool:
    """Return whether a path is a URL, not a path on this machine."""
    return "://" in str(path)


class Store:
    """A folder at a URL; file names are relative to it, with slashes.

    Raises:
      UserError: there is no driver for the URL. All methods: it cannot be reached or written.
    """

    def __init__(self, url: str):
        import fsspec

        self.url = str(url).rstrip("/")
        protocol = self.url.partition("://")[0]
        # No cached listings: other machines write to the folder.
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
        """Return a folder inside this one."""
        return Store(f"{self.url}/{name}")

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of those of the named files that exist."""
        found: dict[str, bytes] = {}
        names = list(names)
        for first in range(0, len(names), _BATCH):
            part = {self._full(name): name for name in names[first : first + _BATCH]}
            with self._telling("read"):
                contents = self._fs.cat(list(part), on_error="return")
                for path, content in contents.items():
                    if isinstance(content, bytes):
                        found[part[path]] = content
                    elif not isinstance(content, FileNotFoundError):
                        raise content
        return found

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, replacing one that exists."""
        with self._telling("written"):
            self._make_parent(name)
            self._fs.pipe_file(self._full(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists; return False if it does.

        Where the store cannot do that in one operation, another machine can come in between.
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
        """Upload files from a folder on this machine under the same names, many at a time.

        Raises:
          FileNotFoundError: one has been deleted meanwhile; others may have been uploaded.
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
        """Download files into a folder on this machine, many at a time."""
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
        """Delete files; missing ones are ignored."""
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
        """Return the names of its direct subfolders that are not hidden, from one listing."""
        with self._telling("read"):
            try:
                entries = self._fs.ls(self._path, detail=True)
            except FileNotFoundError:
                return []
        folders = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"]
        names = [path.rpartition("/")[2] for path in folders]
        return sorted(name for name in names if not name.startswith("."))

    def files(self, under: str = "") -> list[str]:
        """Return the names of all files in it, at any depth, from one listing."""
        with self._telling("read"):
            try:
                found = self._fs.find(self._full(under) if under else self._path)
            except FileNotFoundError:
                return []
        return sorted(path.removeprefix(self._path + "/") for path in found)

    def _full(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _make_parent(self, name: str) -> None:
        # Object stores have no folders; asked to make one, a driver would create a bucket.
        if self.url.partition("://")[0] not in _BUCKETS:
            self._fs.makedirs(self._full(name).rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every driver has exceptions of its own
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"{self.url} cannot be {what}: {reason}.") from error


def scratch_dir(url: str, folder: str | None = None) -> Path:
    """Return the folder on this machine for the runs at a URL; each URL has its own.

    Args:
      url: of the folder of runs.
      folder: where such folders go; None for the user's cache.
    """
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(cache) / "bocb_jax" / "runs")
    digest = hashlib.sha256(str(url).rstrip("/").encode()).hexdigest()[:12]
    return Path(folder).expanduser().absolute() / digest


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A folder of runs, on this machine or at a URL.

    Attributes:
      where: path or URL, as the user gave it and as the workers are told.
      path: the folder on this machine; for a URL, it holds copies of the small files only.
      store: the folder at the URL; None for one on this machine.
    """

    where: str | Path
    path: Path
    store: Store | None = None

    @classmethod
    def at(cls, where: str | Path, scratch_folder: str | None = None) -> "Workdir":
        """Return the folder of runs at a path or a URL."""
        if not is_url(where):
            return cls(Path(where), Path(where))
        return cls(
            str(where), scratch_dir(str(where), scratch_folder) / ".records", Store(str(where))
        )

    def pull(self) -> None:
        """Download `RUN_FILES` of all runs, with one listing."""
        if self.store is None:
            return
        runs = self.store.folders()
        self._take(runs, self.store.read(f"{run}/{name}" for run in runs for name in RUN_FILES))
        self.path.mkdir(parents=True, exist_ok=True)
        for entry in os.scandir(self.path):
            if entry.is_dir() and not entry.name.startswith(".") and entry.name not in set(runs):
                shutil.rmtree(entry.path)

    def fetch(self, run: str) -> None:
        """Download `RUN_FILES` and the manifest of one run."""
        if self.store is not None:
            names = (*RUN_FILES, MANIFEST)
            self._take([run], self.store.read(f"{run}/{name}" for name in names))

    def fetch_file(self, name: str) -> None:
        """Download a file that lies beside the runs, if it exists."""
        content = self.store and self.store.read([name]).get(name)
        if content:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(content)

    def publish(self, *names: str) -> None:
        """Upload files that were written to `path`; nothing to do on this machine."""
        if self.store is not None:
            self.store.upload(self.path, names)

    def _take(self, runs: list[str], contents: dict[str, bytes]) -> None:
        for run in runs:
            for name in (*RUN_FILES, MANIFEST):
                path = self.path / run / name
                content = contents.get(f"{run}/{name}")
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)


def saved_steps(folder: Path) -> list[int]:
    """Return the steps at which a run has saved its state, from its folder or its manifest."""
    saved = [path.name for path in (folder / "checkpoints" / "last").glob("*")]
    with contextlib.suppress(UserError):
        files = (read_json(folder / MANIFEST) or {}).get("files")
        if isinstance(files, dict):
            saved += [n.split("/")[2] for n in files if n.startswith("checkpoints/last/")]
    # Of an edited manifest, such names could be of any length.
    return sorted({int(n) for n in saved if n.isascii() and n.isdecimal() and len(n) < 20})


def is_table(file: Path) -> bool:
    """Return whether a name at a URL is that of a table in a file, and not of a folder of runs."""
    return file.suffix.lower() in _TABLES


@contextlib.contextmanager
def local_copy(
    source: Any,
    *,
    is_file: Callable[[Path], bool] = is_table,
    parts: Callable[[Path], Iterable[Path]] = lambda file: (),
    wanted: Callable[[Path], bool] | None = None,
) -> Iterator[Any]:
    """Yield a path on this machine for a path or a URL; a download is deleted after the block.

    Args:
      source: a path, which is yielded as it is; or the URL of a file, a run, or a folder of runs.
      is_file: whether a URL with that name is one of a file.
      parts: the files beside a downloaded one that it names.
      wanted: which files of a folder to download; None for those that reports are made of.

    Raises:
      UserError: there is nothing at the URL.
    """
    if source is None or not is_url(source):
        yield source
        return
    url = str(source).rstrip("/")
    with tempfile.TemporaryDirectory(prefix="bocb_jax-") as temporary:
        parent, _, name = url.rpartition("/")
        if is_file(Path(name)):
            file = Path(temporary) / name
            store = Store(parent)
            store.download([name], file.parent)
            store.download([part.name for part in parts(file)], file.parent)
            yield file
            return
        store, folder = Store(url), Path(temporary) / name
        if wanted is None:
            _download_records(store, folder)
        else:
            store.download((file for file in store.files() if wanted(Path(file))), folder)
        if not folder.is_dir():
            raise UserError(f"There is nothing at {url}.")
        yield folder


def _download_records(store: Store, folder: Path) -> None:
    """Download `RUN_FILES` of all runs, and the metrics of final runs, which reports plot."""
    prefixes = ["", *(f"{run}/" for run in store.folders())]
    found = store.read(["study.json", *(p + name for p in prefixes for name in RUN_FILES)])
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
