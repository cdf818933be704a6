"""A report in a folder: index.html, which needs no network, report.json, report.md, pictures/."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling.result import Analysis
from bocb_jax.errors import UserError
from bocb_jax.patterns.cells import WeightPatterns
from bocb_jax.report import html, markdown, plots, style
from bocb_jax.report.document import Document
from bocb_jax.report.heat_map_data import build_heat_map
from bocb_jax.report.more_runs import Sweep, more_runs
from bocb_jax.report.sections import build_document
from bocb_jax.storage.files import read_json, write_atomically, write_json

MADE_BY = "bocb_jax report 1"  # in report.json: marks a folder as a report
_FORMATS = ("svg", "png")
_NUMBERED = re.compile(r"(ridges_[a-z]+|predictions)_\d+\.(svg|png)")


@dataclasses.dataclass(frozen=True)
class Written:
    """A report that was written."""

    folder: Path
    files: tuple[str, ...]  # relative to the folder
    replaced: bool  # whether an earlier report was there
    page_bytes: int  # size of index.html


def check_folder(folder: str | Path) -> bool:
    """Return whether an earlier report is in a folder that a report may be written to.

    A report may replace a report, but nothing else: a folder that holds anything else is refused.

    Raises:
      UserError: the folder is a file, or holds something that is no report.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder for the report with --output.")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        record = read_json(folder / "report.json") or {}
    except UserError:
        record = {}
    if record.get("made_by") != MADE_BY:
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
    patterns: WeightPatterns | None = None,
    found_by: Mapping[str, np.ndarray] | None = None,
    sweep: Sweep | None = None,
    pictures: Collection[str] = plots.NAMES,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Written:
    """Write a report; one that is already in the folder is replaced.

    Args:
      analysis: what to report.
      folder: created if it does not exist.
      curves: of the runs, from `bocb_jax.coupling.curves.read`.
      patterns: of the runs' weights, from `bocb_jax.patterns.cells.analyze_runs`.
      found_by: from `plots.predictions.read`, pictures of what nets find.
      sweep: that made the table, for the commands that continue it.
      pictures: names of those to draw, where the data allow them.
      track: wraps the iteration over the pictures, to show progress.

    Raises:
      UserError: the folder is a file, holds something other than a report, or cannot be written to.
    """
    folder = Path(folder)
    replaced = check_folder(folder)
    drawers = {
        name: draw
        for name, draw in plots.drawers(analysis, curves, patterns, found_by).items()
        if name in pictures or name.split("_")[0] in pictures
    }
    document = build_document(analysis, drawers, patterns, sweep)
    heat_map = build_heat_map(analysis, curves)
    names = [f"pictures/{name}.{suffix}" for name in drawers for suffix in _FORMATS]
    files = ("index.html", "report.json", "report.md", *names)
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        # report.json comes first: with it, an interrupted report can be written again.
        write_json(folder / "report.json", _record(analysis, document, files, patterns, sweep))
        drawn = {}
        for name in track(list(drawers)):
            picture = drawers[name]()
            for suffix in _FORMATS:
                style.save(picture, folder / "pictures" / f"{name}.{suffix}")
            drawn[name] = (folder / "pictures" / f"{name}.svg").read_text("utf-8")
        _remove_others(folder / "pictures", {Path(name).name for name in names})
        page = html.render(document, heat_map, drawn)
        write_atomically(folder / "index.html", page)
        write_atomically(folder / "report.md", markdown.render(document, heat_map))
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where} cannot be written: {error.strerror}.") from error
    return Written(folder, files, replaced, len(page.encode()))


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Remove pictures of an earlier report that this one does not have, and no other files."""
    ours = {f"{name}.{suffix}" for name in plots.NAMES for suffix in _FORMATS}
    for path in folder.iterdir():
        if path.name not in kept and (path.name in ours or _NUMBERED.fullmatch(path.name)):
            path.unlink(missing_ok=True)


def _record(
    analysis: Analysis,
    document: Document,
    files: tuple[str, ...],
    patterns: WeightPatterns | None,
    sweep: Sweep | None,
) -> dict[str, Any]:
    """Return the content of report.json; docs/guides/analyze.md describes its keys."""
    return {
        "made_by": MADE_BY,
        "title": document.title,
        "source": document.source,
        "verdict": list(document.verdict),
        "backbones": list(document.backbones),
        "more_runs": [dataclasses.asdict(wanted) for wanted in more_runs(analysis, sweep)],
        "warnings": list(document.warnings),
        "recommendations": [dataclasses.asdict(found) for found in document.recommendations],
        "files": list(files),
        "analysis": analysis.to_dict(),
        "weights": None if patterns is None else patterns.to_dict(),
    }
