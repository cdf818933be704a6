"""Tables of plain text: one line per row, no cell cut, as many columns as the terminal holds."""

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from bocb_jax.console import output

GAP = 2  # spaces between columns


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its heading, and whether its cells are numbers (aligned right)."""

    name: str
    is_number: bool = False


def show_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], notes: Iterable[str] = ()
) -> None:
    """Print a table; the last columns are left out where the terminal is too narrow for them.

    Args:
      columns: the most important first; the first is always shown.
      rows: a cell for each column.
      notes: sentences below the table.
    """
    widths = _widths(columns, rows)
    shown, total = 1, widths[0]
    while shown < len(columns) and total + GAP + widths[shown] <= output.width:
        total += GAP + widths[shown]
        shown += 1
    _show_rows(columns[:shown], [row[:shown] for row in rows], widths[:shown])
    print()
    left_out = [column.name for column in columns[shown:]]
    if left_out:
        notes = [*notes, f"Not shown, for lack of width: {', '.join(left_out)} (--json has them)."]
    for note in notes:
        show_text(note)


def show_in_parts(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print all columns, in several tables below one another where one would be too wide.

    The first column, which names the rows, is repeated in each table.
    """
    widths = _widths(columns, rows)
    first = 1
    while first < len(columns):
        last, total = first + 1, widths[0] + GAP + widths[first]
        while last < len(columns) and total + GAP + widths[last] <= output.width:
            total += GAP + widths[last]
            last += 1
        chosen = [0, *range(first, last)]
        _show_rows(
            [columns[i] for i in chosen],
            [[row[i] for i in chosen] for row in rows],
            [widths[i] for i in chosen],
        )
        print()
        first = last


def show_card(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print what there is to say about one thing: a label and a text per row, wrapped."""
    width = max(len(label) for label, _ in rows) + GAP
    _heading(title)
    for label, text in rows:
        # A column of text narrower than this is harder to read than one that wraps anywhere.
        room = max(output.width - width, 20)
        lines = [part for line in text.splitlines() for part in textwrap.wrap(line, room)] or [""]
        print(f"{label:{width}}{lines[0]}")
        for line in lines[1:]:
            print(" " * width + line)


def show_text(text: str) -> None:
    """Print a sentence, wrapped between words."""
    print(textwrap.fill(text, output.width, break_on_hyphens=False))


def show_json(content: Any) -> None:
    """Print JSON for programs."""
    print(json.dumps(content, indent=1, allow_nan=False))


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    cells = zip(*rows, strict=True) if rows else [()] * len(columns)
    return [
        max(map(len, (column.name, *found))) for column, found in zip(columns, cells, strict=True)
    ]


def _show_rows(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], widths: Sequence[int]
) -> None:
    def line(cells: Iterable[str]) -> str:
        found = zip(columns, cells, widths, strict=True)
        texts = [c.rjust(w) if column.is_number else c.ljust(w) for column, c, w in found]
        return (" " * GAP).join(texts).rstrip()

    _heading(line(column.name for column in columns))
    for row in rows:
        print(line(row))


def _heading(text: str) -> None:
    output.print(text, style="bold", markup=False, soft_wrap=True)
