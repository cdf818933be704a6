"""A report in a folder: one HTML file without network access, the same as JSON and Markdown.

report/index.html, report.json, report.md, pictures/*.svg, pictures/*.png
"""

import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pandas

from bocb_jax.coupling import recommend
from bocb_jax.report import markdown, html, plots, sections, style
from bocb_jax.coupling.analysis import Analysis
from bocb_jax.report.document import Document
from bocb_jax.report import heat
from bocb_jax.patterns.cells import Weights
from bocb_jax.errors import UserError

MADE_BY = "bocb_jax report 1"
_KINDS = ("svg", "png")
_RIDGES = re.compile(r"ridges_[a-z]+_\d+\.(svg|png)")


@dataclasses.dataclass(frozen=True)
class Written:
    """What a report consists of."""

    folder: Path
    files: tuple[str, ...]  # relative to the folder
    replaced: bool  # whether an earlier report was there
    page_bytes: int


def check_folder(folder: str | Path) -> bool:
    """Whether an earlier report is in a folder that a report may be written to.

    A report may replace a report. Into a folder with anything else in it none is written.

    Raises:
      UserError: it is a file, or holds something that is no report.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder for the report with --output.")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        record = json.loads((folder / "report.json").read_text("utf-8"))
        ours = isinstance(record, dict) and record.get("made_by") == MADE_BY
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UserError(
            f"{folder} holds files that are no report of this program, so nothing was written; "
            "choose another folder with --output."
        )
    return True


def write(
    analysis: Analysis,
    folder: str | Path,
    *,
    curves: pandas.DataFrame | None = None,
    weights: Weights | None = None,
    pictures: Collection[str] = plots.NAMES,
    track: Callable[[Iterable], Iterable] = iter,
) -> Written:
    """Writes a report; one that is already in the folder is replaced.

    Args:
      analysis: what to report.
      folder: made if it is not there.
      curves: of the runs, from `bocb_jax.coupling.curves.read`.
      weights: of the runs, from `bocb_jax.patterns.cells.read`.
      pictures: names of those to draw, where the data give them.
      track: goes through the pictures, to show progress.

    Raises:
      UserError: the folder is a file, holds other things than a report, or cannot be written to.
    """
    folder = Path(folder)
    replaced = check_folder(folder)
    drawers = plots.draw_all(analysis, curves, weights)
    drawers = {n: drawers[n] for n in drawers if n in pictures or n.split("_")[0] in pictures}
    document = sections.build(analysis, drawers, weights)
    data = heat.build(analysis, curves)
    names = [f"pictures/{name}.{kind}" for name in drawers for kind in _KINDS]
    files = ("index.html", "report.json", "report.md", *names)
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        # First what says that the folder is ours: after an interruption it can be written again.
        _put(folder / "report.json", _json(analysis, document, files, weights))
        drawings = {}
        for name in track(list(drawers)):
            drawn = drawers[name]()
            for kind in _KINDS:
                style.save(drawn, folder / "pictures" / f"{name}.{kind}")
            drawings[name] = (folder / "pictures" / f"{name}.svg").read_text("utf-8")
        _remove_others(folder / "pictures", {Path(name).name for name in names})
        html = html.render(document, data, drawings)
        _put(folder / "index.html", html)
        _put(folder / "report.md", markdown.render(document, data))
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where} cannot be written: {error.strerror}.") from error
    return Written(folder, files, replaced, len(html.encode()))


def _put(path: Path, content: str) -> None:
    """A file in one piece: a reader never sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(content, "utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Pictures of an earlier report that this one does not have."""
    ours = {f"{name}.{kind}" for name in plots.NAMES for kind in _KINDS}
    for path in folder.iterdir():
        if path.name not in kept and (path.name in ours or _RIDGES.fullmatch(path.name)):
            path.unlink(missing_ok=True)


def _json(
    analysis: Analysis, document: Document, files: tuple[str, ...], weights: Weights | None
) -> str:
    advice = []
    for name in analysis.table.backbones:
        found = recommend.recommend(analysis.table, name)
        if found is not None:
            advice.append(dataclasses.asdict(found))
    record = {
        "made_by": MADE_BY,
        "title": document.title,
        "source": document.source,
        "verdict": list(document.verdict),
        "warnings": list(document.warnings),
        "recommendations": advice,
        "files": list(files),
        "analysis": analysis.to_dict(),
        "weights": None if weights is None else weights.to_dict(),
    }
    out = io.StringIO()
    json.dump(_plain(record), out, indent=1, allow_nan=False)
    return out.getvalue() + "\n"


def _plain(value: Any) -> Any:
    """Without NaN and infinity, which are no JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
