"""JSON and JSON Lines on disk: checked when read, written in one piece."""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from bocb_jax.errors import UserError

# Bytes; the files of a run are a thousand times smaller.
MAX_JSON, MAX_JSONL = 64 * 2**20, 2**30


def is_plain_name(name: str) -> bool:
    """Return whether a name, joined to a folder, stands for something directly in it."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def read_json(path: str | Path) -> dict[str, Any] | None:
    """Return the object in a file, or None if there is no such file.

    Raises:
      UserError: the file cannot be read, is not JSON, or holds something other than an object.
    """
    try:
        content = read_bytes(path, MAX_JSON)
    except FileNotFoundError:
        return None
    return decode_object(content, path)


def decode_object(content: bytes, source: str | Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
      content: of the file.
      source: its path or URL, for messages.

    Raises:
      UserError: it is not JSON, or holds something other than an object.
    """
    try:
        found = _DECODER.decode(_decode_text(content, source))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(
            f"{source} cannot be read ({reason}); was it edited? Move its folder away to train "
            "that run anew."
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{source} holds no object; was it edited? Move its folder away.")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"JSON has no {text}")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def read_text(path: str | Path, limit: int) -> str:
    """Return the text of a regular file in UTF-8, with or without a byte-order mark.

    Args:
      path: of the file; a device, a FIFO or a folder is refused without being read.
      limit: largest number of bytes.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is no regular file, too large, not UTF-8, or cannot be read.
    """
    return _decode_text(read_bytes(path, limit), path)


def _decode_text(content: bytes, source: str | Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source} is not text in UTF-8 (byte {error.start + 1}); save it in that encoding."
        ) from error


def read_bytes(path: str | Path, limit: int) -> bytes:
    """Return the bytes of a regular file; see `read_text`."""
    try:
        # A FIFO that nobody writes to would block without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            check_regular(path, os.fstat(descriptor), limit)
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}.") from error


def check_regular(path: str | Path, status: os.stat_result, limit: int | None = None) -> None:
    """Raise UserError unless a file is a regular one of at most `limit` bytes.

    Args:
      path: for the message.
      status: of the file, from `os.stat`.
      limit: in bytes; None for none.
    """
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} is a folder; a file is expected there.")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no regular file, but a device, a pipe or a socket.")
    if limit is not None and status.st_size > limit:
        raise UserError(
            f"{path} is larger than {limit / 2**20:,.0f} MiB, the most that such a file may have."
        )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file, one per line; none if there is no such file.

    A line that holds no object is left out: a crash can cut the last one off.
    """
    return [line for line in read_damaged_jsonl(path) if line is not None]


def read_damaged_jsonl(path: Path) -> list[dict[str, Any] | None]:
    """Return the objects in a file, one per line, with None for a line that holds no object."""
    try:
        content = read_bytes(path, MAX_JSONL)
    except FileNotFoundError:
        return []
    return [_object(line) for line in content.split(b"\n") if line]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = _DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON, atomically."""
    write_atomically(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def json_line(content: dict[str, Any]) -> str:
    """Return an object as one line of a JSON Lines file, newline included."""
    return json.dumps(finite(content), allow_nan=False) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old file or the new one whole.

    Raises:
      UserError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def finite(value: Any) -> Any:
    """Return a copy in which NaN and infinities are None, since JSON has neither."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
