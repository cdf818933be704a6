"""Checksums of the files of a checkpoint: written once it is complete, compared before it is read.

The file lists a digest per file, in the format of `xxhsum`, and a digest of that list. The digests
find damage by a disk or a transfer, not tampering.
"""

import mmap
import os
from pathlib import Path

import xxhash

from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_bytes, write_atomically

FILE = "checksums.xxh128"
MAX_BYTES = 64 * 2**20  # of that file
_LIST = "these lines"  # stands for the file's own lines before the last


def write(folder: Path) -> None:
    """Write the checksums of all files below a folder.

    Raises:
      OSError: a file cannot be read.
      UserError: the checksums cannot be written.
    """
    files = sorted(_files(folder).items())
    lines = "".join(f"{_digest(path)}  {name}\n" for name, path in files)
    write_atomically(folder / FILE, f"{lines}{_digest_of(lines.encode())}  {_LIST}\n")


def exist(folder: Path) -> bool:
    """Return whether a folder has checksums; checkpoints of earlier versions have none."""
    return (folder / FILE).exists()


def damage(folder: Path) -> str | None:
    """Return which file below a folder does not match its checksum, or None if all do.

    Without checksums, nothing is known to be damaged. Files that are not listed do not count.
    """
    try:
        content = read_bytes(folder / FILE, MAX_BYTES)
    except FileNotFoundError:
        return None
    except UserError as error:
        return str(error).rstrip(".")
    *lines, last = content.splitlines(keepends=True) or [b""]
    if last != f"{_digest_of(b''.join(lines))}  {_LIST}\n".encode():
        return f"{FILE} is damaged"
    there = _files(folder)
    for line in lines:
        digest, _, name = line.decode(errors="replace").rstrip("\n").partition("  ")
        if name not in there:
            return f"{name} is missing"
        try:
            if _digest(there[name]) != digest:
                return f"{name} does not match its checksum"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _files(folder: Path) -> dict[str, Path]:
    """Return the regular files below a folder but the checksums, by their names."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if FILE not in path.name and path.is_file()
    }


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
            return _digest_of(b"")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return xxhash.xxh3_128_hexdigest(content)


def _digest_of(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)
