"""The paper's tables, read from the CSV files in `published/`.

Each file begins with its source and the known errors of its copies. Standard library only, except
for `table`, which returns a pandas DataFrame.
"""

import csv
import functools
import importlib.resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

from bocb_jax.errors import UserError

if TYPE_CHECKING:
    import pandas

_FOLDER = importlib.resources.files("bocb_jax.paper")
_PUBLISHED = _FOLDER.joinpath("published")
# Table 3 holds two metrics: the columns of each, by the beginning of their names.
_PARTS = {"coco_box": ("coco", "det_"), "coco_pose": ("coco", "pose_")}


def names() -> list[str]:
    """Return the names of the published tables."""
    files = (file.name[:-4] for file in _PUBLISHED.iterdir() if file.name.endswith(".csv"))
    return sorted([*files, *_PARTS])


@functools.cache
def rows(name: str) -> tuple[dict[str, str], ...]:
    """Return the rows of a published table as text.

    Raises:
      UserError: there is no such table; the message lists those that exist.
    """
    if name not in names():
        raise UserError(f"There is no published table '{name}'. There are: {', '.join(names())}.")
    if name in _PARTS:
        whole, start = _PARTS[name]
        return tuple(
            {
                column.removeprefix(start): cell
                for column, cell in row.items()
                if column == "optimizer" or column.startswith(start)
            }
            for row in rows(whole)
        )
    return _read(_PUBLISHED.joinpath(f"{name}.csv"))


def backbones() -> list[str]:
    """Return the paper's 21 backbones by their names here: Table 1's, and ResNet-101."""
    return [*(row["model"] for row in rows("backbones")), "resnet101"]


def optimizers() -> list[str]:
    """Return the paper's twenty optimizers by their names here."""
    return [row["opt"] for row in rows("optimizers")]


def own_rows(name: str) -> tuple[dict[str, str], ...]:
    """Return the rows of a table that this project adds to the paper's, as text."""
    return _read(_FOLDER.joinpath(f"{name}.csv"))


def _read(file: Traversable) -> tuple[dict[str, str], ...]:
    lines = file.read_text("utf-8").splitlines()
    return tuple(csv.DictReader(line for line in lines if not line.startswith("#")))


def table(name: str) -> "pandas.DataFrame":
    """Return a published table as a DataFrame, with numeric columns as numbers.

    The first column becomes the index if its values are unique, so tables of scores are indexed by
    optimizer.

    Raises:
      UserError: there is no such table; the message lists those that exist.
    """
    import pandas

    frame = pandas.DataFrame([dict(row) for row in rows(name)])
    for column in frame.columns:
        numbers = pandas.to_numeric(frame[column], errors="coerce")
        if numbers.notna().all():
            frame[column] = numbers
    key = frame.columns[0]
    return frame.set_index(key) if frame[key].is_unique else frame
