"""Numbers, names and lists as sentences have them."""

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np
import pandas

from bocb_jax.coupling.rounding import significant
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.report.style import label

_FIXED = ("points", "AP")  # units whose figures have one or two decimals, as papers print them
_ROUNDING = 1e-9  # so that 3.45, which floats hold as a little less, becomes 3.5


def is_known(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    return value is not None and not isinstance(value, str) and math.isfinite(float(value))


def gap(table: ScoreTable, value: float, *, fine: bool = False) -> str:
    """Return a distance between scores without its unit: "3.5", "0.22", "40 %".

    Args:
      table: the scores; where they are relative, the distance becomes a percentage of the best.
      value: the distance in the table's unit.
      fine: whether distances of 1 and more have two decimals.
    """
    if table.relative:
        percent = table.distances(value)
        decimals = 0 if abs(percent) >= 9.95 else 1
        return f"{percent + math.copysign(_ROUNDING, percent):z,.{decimals}f} %"
    return number(table, value, fine=fine)


def number(table: ScoreTable, value: float, *, fine: bool = False) -> str:
    """Return a number in the unit of a table, with as many digits as it deserves."""
    size = abs(value)
    if size >= 999.5:
        return significant(value)
    if table.unit in _FIXED:
        decimals = 2 if fine or size < 0.995 else 1
        return f"{value + math.copysign(_ROUNDING, value):z.{decimals}f}"
    if size < _ROUNDING * (table.equal or 1.0):
        return "0"  # what is left of a difference of equal figures
    return significant(value, 3 if fine else 2)


def with_unit(table: ScoreTable, value: float, *, fine: bool = False) -> str:
    """Return a distance with its unit: "3.5 points", "1 point", "40 %"."""
    text = gap(table, value, fine=fine)
    unit = "" if table.relative else table.unit  # a share has its "%" already
    if unit == "points" and text in ("1", "1.0"):
        unit = "point"
    return f"{text} {unit}".rstrip()


def distances(table: ScoreTable, frame: pandas.DataFrame, *columns: str) -> pandas.DataFrame:
    """Return a frame with its columns of distances, and their ends, in `table.distance_unit`."""
    names = {f"{column}{end}" for column in columns for end in ("", "_low", "_high")}
    told = {name: table.distances(frame[name].astype(float)) for name in names & {*frame}}
    return frame.assign(**told)


def without_failed(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return rows of general advice without a price of what fails: it was not measured.

    Args:
      frame: with columns general, price and fails.
    """
    fails = frame["fails"].eq(True)
    said = frame["general"].astype(str) + ", which does not finish"
    return frame.assign(
        price=frame["price"].mask(fails), general=frame["general"].mask(fails, said)
    )


def equal_distance(table: ScoreTable) -> str:
    """Return the distance that counts as equal: "1 point", "0.05 nats", "2 %"."""
    if table.relative:
        return gap(table, table.equal)
    unit = table.unit.removesuffix("s") if table.equal == 1 and table.unit == "points" else None
    return f"{significant(table.equal)} {table.unit if unit is None else unit}".rstrip()


def score(table: ScoreTable, value: float) -> str:
    """Return a score with its unit: "78.76 %", "512 s"."""
    value, unit = table.as_measured(value), table.score_unit
    if unit in _FIXED:
        return f"{value:.2f}" + {"points": " %"}.get(unit, f" {unit}")
    return f"{significant(value, 4)} {unit}".rstrip()


def is_nothing(table: ScoreTable, value: float) -> bool:
    """Return whether a distance is printed as nothing but zeros."""
    return not any(digit in gap(table, value, fine=True) for digit in "123456789")


def plural(count: float, word: str) -> str:
    """Return a word, with an s unless there is one."""
    return word if count == 1 else word + "s"


def counted(count: int, word: str) -> str:
    """Return "1 backbone", "3 backbones"."""
    return f"{count} {plural(count, word)}"


def listed(names: Iterable[str], most: int = 8, last: str = "and") -> str:
    """Return "a", "a and b", "a, b and c"; with more than `most` names, "a, b and 5 more"."""
    names = list(names)
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
        last = "and"
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def labels(names: Iterable[object]) -> list[str]:
    """Return names fit to be shown."""
    return [label(name) for name in names]


def sentence(text: str) -> str:
    """Return a text with a full stop at the end."""
    return text if text.endswith((".", "!", "?")) else text + "."


def largest(values: Iterable[float]) -> float:
    """Return the largest known value; NaN if there is none."""
    known = [value for value in values if is_known(value)]
    return max(known, default=np.nan)
