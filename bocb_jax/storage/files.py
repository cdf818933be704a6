"""JSON and JSON Lines on disk: checked when read, written in one piece."""

import json
import math
import os
from pathlib import Path
from typing import Any

from bocb_jax.errors import UserError


def read_json(path: str | Path) -> dict[str, Any] | None:
    """Return the object in a file, or None if there is no such file.

    Raises:
      UserError: the file cannot be read, is not JSON, or holds something other than an object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); was it edited? Move its folder away to train that "
            "run anew."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object; was it edited? Move its folder away.")
    return content


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file, one per line; none if there is no such file.

    Reading stops at the first line that is not whole: a crash can cut the last one off.
    """
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


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
