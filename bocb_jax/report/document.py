"""The content of a report: sections of sentences, tables and pictures, in no format yet.

`sections` fills it, `page` turns it into HTML and `markdown` into Markdown: both say the same.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pandas

from bocb_jax.report.style import label

LONGEST = 400  # rows of one table; what is longer is cut, which its caption says


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table."""

    key: str
    title: str
    # "text", "int", "number", "percent" (of a share in [0, 1]), "p", "rate", or "interval": the
    # value with `key`_low and `key`_high in brackets
    kind: str = "number"
    help: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of values, not yet formatted; NaN and None are empty cells."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Any], ...]
    caption: str = ""
    folded: bool = False  # closed at first in HTML


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture by its name in `plots.draw_all`."""

    name: str
    title: str
    text: str  # what one sees, for those who do not see it
    folded: bool = False  # closed at first in HTML


@dataclasses.dataclass(frozen=True)
class Text:
    """Sentences: a paragraph each, or a list."""

    lines: tuple[str, ...]
    listed: bool = False


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """The place of the heat map."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    name: str
    title: str
    blocks: tuple[Text | Table | Picture | HeatMap, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    source: str
    verdict: tuple[str, ...]
    tiles: tuple[tuple[str, str], ...]  # a figure and what it is
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]


def text(value: Any, kind: str = "number", row: dict | None = None, key: str = "") -> str:
    """A value as a report writes it; empty where it is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pandas.NA:
        return ""
    if kind == "text" or isinstance(value, str):
        return label(value, 400)
    if isinstance(value, bool):
        return "yes" if value else "no"
    value = float(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    if kind == "int":
        return f"{value:g}"
    if kind == "percent":
        shown = f"{100 * value:.0f} %"
        if row is not None and key:
            low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
            if _finite(low) and _finite(high):
                shown += f" [{100 * low:.0f}, {100 * high:.0f}]"
        return shown
    if kind == "p":
        return "< 0.0001" if value < 1e-4 else f"{value:.3f}" if value >= 0.001 else f"{value:.4f}"
    if kind == "rate":
        return f"{value:.3g}"
    shown = f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    if kind == "interval" and row is not None:
        low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
        if _finite(low) and _finite(high):
            shown += f" [{low:.2f}, {high:.2f}]"
    return shown


def _finite(value: Any) -> bool:
    return text(value) != "" and math.isfinite(value)


def filled(block) -> bool:
    """Whether there is something in a block."""
    if isinstance(block, Table):
        return bool(block.rows)
    return bool(block.lines) if isinstance(block, Text) else True


def table_of(
    frame: pandas.DataFrame | None,
    title: str,
    columns: Sequence[tuple],
    caption: str = "",
    *,
    index: str | None = None,
    folded: bool = False,
) -> Table:
    """A table of a frame: columns that are missing or empty are left out."""
    if frame is None or not len(frame):
        return Table(title, (), ())
    if index is not None:
        frame = frame.rename_axis(index).reset_index()
    kept = tuple(
        Column(*column)
        for column in columns
        if column[0] in frame and not (frame[column[0]].isna().all() and len(frame))
    )
    if len(frame) > LONGEST:
        caption = f"{caption} The first {LONGEST} of {len(frame)} rows.".strip()
        frame = frame.head(LONGEST)
    rows = tuple(frame.astype(object).to_dict("records"))
    return Table(title, kept, rows, caption, folded)
