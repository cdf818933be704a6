"""The content of a report: sections of text, tables and pictures, independent of the format.

`sections` fills it; `html` and `markdown` render it, so both formats say the same.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas

from bocb_jax.coupling.recommend import Advice
from bocb_jax.report.style import label

MAX_ROWS = 400  # of one table; the caption of a longer one says that it was cut


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table."""

    key: str
    title: str
    # "text", "int", "number", "percent" (of a share in [0, 1]), "p" (a p-value), "rate", or
    # "interval" (the value, with `key`_low and `key`_high in brackets)
    kind: str = "number"
    help: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of values that are not yet formatted; NaN and None are empty cells."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Any], ...]
    caption: str = ""
    folded: bool = False  # collapsed at first in HTML
    stacked: bool = False  # each row a block of its own where the window is narrow


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture, by its name in `plots.drawers`."""

    name: str
    title: str
    text: str  # describes it for readers who cannot see it
    folded: bool = False  # collapsed at first in HTML


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs, or the items of a list."""

    lines: tuple[str, ...]
    listed: bool = False
    code: bool = False  # commands to be pasted


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """The position of the heat map of scores; its data are a `heat_map_data.HeatMapData`."""


Block = Text | Table | Picture | HeatMap


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and the blocks under it."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    source: str
    verdict: tuple[str, ...]
    tiles: tuple[tuple[str, str], ...]  # pairs of a number and its meaning
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    behind: tuple[Section, ...]  # the statistics, collapsed at first in HTML
    # The figures behind two of the sections, for report.json.
    backbones: tuple[dict[str, Any], ...]  # from `advice.backbone_rows`
    recommendations: tuple[Advice, ...]  # for each backbone


def format_value(
    value: Any, kind: str = "number", row: Mapping[str, Any] | None = None, key: str = ""
) -> str:
    """Return a value as reports print it; "" if it is unknown.

    Args:
      value: a number or text.
      kind: of the column, see `Column`.
      row, key: where to look up the ends of an interval, `key`_low and `key`_high.
    """
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
        return f"{value:.10g}"
    if kind == "p":
        return "< 0.0001" if value < 1e-4 else f"{value:.3f}" if value >= 0.001 else f"{value:.4f}"
    if kind == "rate":
        return f"{value:.3g}"
    ends = _interval(row, key)
    if kind == "percent":
        between = f" [{100 * ends[0]:z.0f}, {100 * ends[1]:z.0f}]" if ends else ""
        return f"{100 * value:z.0f} %{between}"
    between = f" [{ends[0]:z.2f}, {ends[1]:z.2f}]" if ends and kind == "interval" else ""
    return (f"{value:z.2f}" if abs(value) < 1000 else f"{value:,.0f}") + between


def _interval(row: Mapping[str, Any] | None, key: str) -> tuple[Any, Any] | None:
    if row is None or not key:
        return None
    low, high = (row.get(f"{key}_{end}") for end in ("low", "high"))
    return (low, high) if _is_finite(low) and _is_finite(high) else None


def _is_finite(value: Any) -> bool:
    return format_value(value) != "" and math.isfinite(value)


def is_empty(block: Block) -> bool:
    """Return whether a block has nothing to show."""
    if isinstance(block, Table):
        return not block.rows
    return isinstance(block, Text) and not block.lines


def only_drawn(drawn: Collection[str], *pictures: Picture) -> tuple[Picture, ...]:
    """Return those pictures whose names are among the drawn ones."""
    return tuple(picture for picture in pictures if picture.name in drawn)


def table_from(
    frame: pandas.DataFrame | None,
    title: str,
    columns: Sequence[tuple[str, ...]],
    caption: str = "",
    *,
    index: str | None = None,
    folded: bool = False,
    stacked: bool = False,
) -> Table:
    """Return a frame as a table, without columns that are missing or hold no value.

    Args:
      frame: the values; None or no rows give an empty table.
      title, caption, folded, stacked: of the table.
      columns: arguments of `Column` for each.
      index: key under which the frame's index becomes a column.
    """
    if frame is None or not len(frame):
        return Table(title, (), ())
    if index is not None:
        frame = frame.rename_axis(index).reset_index()
    kept = tuple(
        Column(*column)
        for column in columns
        if column[0] in frame and not frame[column[0]].isna().all()
    )
    if len(frame) > MAX_ROWS:
        caption = f"{caption} The first {MAX_ROWS} of {len(frame)} rows.".strip()
        frame = frame.head(MAX_ROWS)
    rows = tuple(
        {str(k): v for k, v in row.items()} for row in frame.astype(object).to_dict("records")
    )
    return Table(title, kept, rows, caption, folded, stacked)
