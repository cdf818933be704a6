"""Cells of a table as figures: "78.35 %", "78,35 ± 0,21", "1.2e3 (40)", "diverged", "n/a"."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling.score_table import STATUSES
from bocb_jax.errors import UserError

LARGEST = 1e30  # of any figure: the squares of larger ones overflow
# What stands for no figure.
_EMPTY = frozenset(
    ("", "-", "--", "---", "\u2013", "\u2014", "\u2212", ".", "?", "na", "n/a", "n.a.", "#n/a",
     "#na", "<na>", "nan", "none", "null", "nil", "missing", "tbd")
)  # fmt: skip
# Words for how a run ended, without spaces and signs, beside the statuses themselves.
_WORDS = {
    "finished": ("finished", "finish", "ok", "done", "success", "succeeded", "successful",
                 "complete", "completed", "true", "passed"),
    "diverged": ("diverge", "divergence", "nan", "inf", "infinite", "exploded", "nonfinite"),
    "out_of_memory": ("oom", "cudaoutofmemory"),
    "crashed": ("crash", "fail", "failed", "failure", "error", "killed", "aborted", "preempted",
                "cancelled", "canceled", "stopped", "false", "x", "✗"),
    "timed_out": ("timeout", "timelimit", "walltime"),
    "not_reached": ("unreached", "censored", "dnf", "didnotreach", "targetnotreached"),
    "unfinished": ("unfinished", "running", "pending", "queued", "scheduled", "incomplete"),
}  # fmt: skip


def _plain(word: str) -> str:
    return re.sub(r"[\W_]+", "", word.lower()) or word


_STATUS_OF = {_plain(word): status for status, words in _WORDS.items() for word in words}
_STATUS_OF |= {_plain(status): status for status in STATUSES}
# Words that stand in a column of figures as well; the others, such as "x", mean something else.
_IN_PLACE_OF_FIGURE = ("diverge", "divergence", "exploded", "oom", "crash", "fail", "failed",
                       "failure", "error", "timeout", "timelimit", "unreached", "censored", "dnf",
                       "didnotreach", "targetnotreached",
                       *(status.replace("_", "") for status in STATUSES[1:]))  # fmt: skip

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_FIGURE = re.compile(
    rf"\(?\s*(?P<value>{_NUMBER})\s*(?P<percent>%?)\s*"
    rf"(?:(?:±|\+\s*/?\s*-|\\pm)\s*(?P<spread>{_NUMBER})|\(\s*±?\s*(?P<inner>{_NUMBER})\s*%?\s*\))?"
    r"\s*\)?\s*(?P<last>%?)"
)
_GROUPED = {
    ",": re.compile(r"(?<![\d.,])[1-9]\d{0,2}(,\d{3})+(?![\d,])"),
    ".": re.compile(r"(?<![\d.,])[1-9]\d{0,2}(\.\d{3})+(?![\d.])"),
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """Cells of a column, read.

    Attributes:
      values: (n,) figures; NaN where there is none.
      spreads: (n,) what stands behind ±, or in brackets; NaN where nothing does.
      statuses: (n,) the status that stands in place of a figure, else "".
      percent: whether any figure has a percent sign.
    """

    values: np.ndarray
    spreads: np.ndarray
    statuses: np.ndarray
    percent: bool

    @property
    def empty(self) -> np.ndarray:
        """(n,) whether a cell holds neither a figure nor a status."""
        return np.isnan(self.values) & (self.statuses == "")

    def take(self, kept: np.ndarray) -> "Figures":
        """Return the figures where a mask (n,) is true."""
        parts = (self.values[kept], self.spreads[kept], self.statuses[kept])
        return Figures(*parts, self.percent)


def status_of(word: Any) -> str | None:
    """Return the status that a word for the end of a run means: "" for none, None if unknown.

    >>> status_of("OOM"), status_of("FINISHED"), status_of("n/a"), status_of("blue")
    ('out_of_memory', 'finished', '', None)
    """
    if word is None or word != word:
        return ""
    text = str(word).strip().lower()
    found = _STATUS_OF.get(_plain(text))
    return found or ("" if text in _EMPTY else None)


def decimal_of(columns: Iterable[Sequence[Any] | np.ndarray], name: str, *, below: float) -> str:
    """Return the decimal sign of the numbers in a table's columns, "." or ",".

    Commas are decimal where no number has a point. "1,234" alone tells neither way: it is 1.234
    where 1234 would be too large.

    Args:
      columns: cells that should be numbers.
      name: of the table, for messages.
      below: what every figure lies below, such as 100 for percentages.

    Raises:
      UserError: it cannot be told.
    """
    texts = [cell for cells in columns for cell in cells if isinstance(cell, str)]
    commas = [text for text in texts if "," in text]
    if not commas:
        return "."
    for text in commas:  # "1.234,5" or "1,234.5": the last one is decimal
        if "." in text.partition("±")[0]:
            return "," if text.rfind(",") > text.rfind(".") else "."
    if any("." in text and any(sign.isdigit() for sign in text) for text in texts):
        return "."
    if below < 1000 or not all(_GROUPED[","].search(text) for text in commas):
        return ","
    raise UserError(
        f"'{name}': {commas[0][:40]!a} may be a decimal number or have a separator of thousands; "
        "write decimal points, and no separators of thousands."
    )


def read(
    cells: Sequence[Any] | np.ndarray, *, decimal: str = ".", unit: str = ""
) -> tuple[Figures, int | None]:
    """Read the cells of a column.

    Args:
      cells: texts, numbers or None.
      decimal: "." or ",".
      unit: what may follow a figure, such as "s".

    Returns:
      The figures, and the index of the first cell that is none, if there is one.
    """
    n = len(cells)
    texts = pandas.Series(cells, dtype=object)
    plain = texts
    if decimal == ",":
        plain = texts.map(_with_decimal_point)
    values = pandas.to_numeric(plain, errors="coerce").to_numpy(float, copy=True)
    spreads, statuses, percent = np.full(n, np.nan), np.full(n, "", object), False
    found: dict[Any, tuple[float, float, str, bool] | None] = {}
    odd = np.isnan(values) | (np.abs(values) > LARGEST)
    odd |= texts.map(lambda cell: isinstance(cell, bool)).to_numpy(bool)
    for i in np.flatnonzero(odd):
        cell = cells[int(i)]
        if cell not in found:
            found[cell] = _read(cell, decimal, unit)
        figure = found[cell]
        if figure is None:
            return Figures(values, spreads, statuses, percent), int(i)
        values[i], spreads[i], statuses[i] = figure[:3]
        percent |= figure[3]
    return Figures(values, spreads, statuses, percent), None


def _with_decimal_point(cell: Any) -> Any:
    return _ungrouped(cell, ".").replace(",", ".") if isinstance(cell, str) else cell


def _ungrouped(text: str, separator: str) -> str:
    """Return a text without the separators of thousands of its numbers."""
    return _GROUPED[separator].sub(lambda found: found[0].replace(separator, ""), text)


def _read(cell: Any, decimal: str, unit: str) -> tuple[float, float, str, bool] | None:
    """Return value, spread, status and whether in percent; None for what is no figure."""
    nothing = float("nan")
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return nothing, nothing, "", False
    if isinstance(cell, bool):
        return None
    text = _cleaned(str(cell), unit)
    if text.lower() in _EMPTY:
        return nothing, nothing, "", False
    if re.fullmatch(r"[-+]?inf(inity)?", text.lower()):
        return float(text), nothing, "", False
    if _plain(text) in _IN_PLACE_OF_FIGURE:
        return nothing, nothing, _STATUS_OF[_plain(text)], False
    thousands = "." if decimal == "," else ","
    text = _ungrouped(text, thousands)
    if thousands in text:
        return None
    figure = _FIGURE.fullmatch(text.replace(",", "."))
    if figure is None or text.count("(") != text.count(")"):
        return None
    value, inner = float(figure["value"]), figure["inner"]
    if inner is not None and "." in figure["value"] and "." not in inner:
        return None  # 78.35(21) may be an error of 0.21, a rank, or a number of seeds
    spread = float(figure["spread"] or inner or nothing)
    if spread < 0 or spread > LARGEST:
        return None
    return value, spread, "", "%" in text


def _cleaned(text: str, unit: str) -> str:
    """Return a cell without what typesetting adds to it."""
    text = text.translate({0x2212: "-", 0xA0: " ", 0x202F: " ", 0x2009: " ", ord("$"): None})
    text = re.sub(r"\\(?:textbf|mathbf|underline)\{([^{}]*)\}", r"\1", text).replace("\\%", "%")
    text = text.strip().strip("*†‡§_`").strip()
    return text.removesuffix(unit).rstrip() if unit else text
