"""The data of the interactive heat map: texts and colours of each measure, facts of each cell."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.rounding import significant
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.report.document import format_value
from bocb_jax.report.style import MARK_SIGNS, ONE_SEED_SIGN, colour_steps, ink_on, label

# Upper ends of the steps of colour, in points: distance to the best, and size of the coupling.
_REGRET_STEPS = (0.5, 1, 2, 3, 4, 6, 8, 10)
_COUPLING_STEPS = (0.5, 1, 2, 4, 8)

_Grid = list[list[str]]  # optimizers x backbones


@dataclasses.dataclass(frozen=True)
class Measure:
    """One of the values that the heat map can show; all grids are optimizers x backbones."""

    key: str
    title: str
    texts: _Grid
    colours: _Grid  # CSS classes, see `palette`
    values: list[list[float | None]]  # to sort by
    strong: list[list[bool]]  # cells in bold
    legend: list[tuple[str, str]]  # CSS class and meaning
    low_first: bool  # whether low values are good


@dataclasses.dataclass(frozen=True)
class HeatMapData:
    """Everything that the heat map shows; lists by optimizer, then by backbone."""

    optimizers: tuple[str, ...]
    backbones: tuple[str, ...]
    measures: tuple[Measure, ...]  # the first is shown at first
    cells: list[list[dict[str, Any]]]  # facts (pairs of name and text) and curve of each cell
    best: list[int | None]  # by backbone, the index of its best optimizer
    curve_measure: str  # what the curves show

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able dicts and lists."""
        return dataclasses.asdict(self)


def palette() -> str:
    """Return CSS for the colour classes: s0 to s8 (distance to the best), d0 to d10 (coupling)."""
    steps = {f"s{i}": c for i, c in enumerate(colour_steps("cividis_r", 9, 0.03, 0.97))}
    # Orange is negative, blue positive; the two ends also differ in lightness, for grey print.
    steps |= {f"d{i}": c for i, c in enumerate(colour_steps("PuOr", 11, 0.08, 0.92))}
    rules = []
    for name, colour in steps.items():
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        ink = ink_on(red, green, blue)
        rules.append(f"#heat td.{name}, i.{name} {{ background: {colour}; color: {ink}; }}")
    return "\n".join(rules)


def row_and_column_order(analysis: Analysis) -> tuple[list[str], list[str]]:
    """Return optimizers by mean regret, and backbones by cluster if there are clusters."""
    rows = list(analysis.regret.mean(axis=1).sort_values(kind="stable").index)
    columns = list(analysis.regret.columns)
    if analysis.clusters is not None:
        order = [name for name in analysis.clusters.order if name in columns]
        columns = order + [name for name in columns if name not in order]
    return rows, columns


def build_heat_map(analysis: Analysis, curves: pandas.DataFrame | None = None) -> HeatMapData:
    """Return the heat map of an analysis.

    Args:
      analysis: of any table.
      curves: from `bocb_jax.coupling.curves.read`, to show with each cell.
    """
    rows, columns = row_and_column_order(analysis)
    grids = _Grids.of(analysis, rows, columns)
    best = [
        None if np.isnan(column).all() else int(np.nanargmin(column)) for column in grids.regret.T
    ]
    thinned, curve_measure = _curves(curves)
    return HeatMapData(
        optimizers=tuple(label(name, 60) for name in rows),
        backbones=tuple(label(name, 60) for name in columns),
        measures=_measures(analysis.table, grids),
        cells=_cells(analysis, rows, columns, grids, thinned),
        best=best,
        curve_measure=curve_measure,
    )


@dataclasses.dataclass(frozen=True)
class _Grids:
    """Arrays of shape (optimizers, backbones), in the order of the heat map."""

    scores: np.ndarray
    regret: np.ndarray
    coupling: np.ndarray
    counts: np.ndarray  # scores per cell
    failed: np.ndarray  # whether every run failed
    marks: np.ndarray  # "best", "top4", "outlier", "inlier" or "missing"

    @classmethod
    def of(cls, analysis: Analysis, rows: list[str], columns: list[str]) -> "_Grids":
        table = analysis.table

        def grid(frame: pandas.DataFrame, dtype: Any) -> np.ndarray:
            return frame.reindex(index=rows, columns=columns).to_numpy().astype(dtype)

        return cls(
            scores=grid(table.measured(), float),
            regret=grid(analysis.regret, float),
            coupling=grid(analysis.coupling, float),
            counts=grid(table.counts(), float),
            failed=grid(table.failed(), bool),
            marks=grid(analysis.outliers.labels, str),
        )

    @property
    def missing(self) -> np.ndarray:
        return ~np.isfinite(self.scores)


def _measures(table: ScoreTable, grids: _Grids) -> tuple[Measure, ...]:
    unit, points = table.distance_unit, table.unit == "points"
    decimals = 1 if points or table.relative else 2
    factor = 1.0 if points else _largest(grids.regret) / _REGRET_STEPS[-1]
    behind = [end * factor for end in _REGRET_STEPS]
    sizes = [end * factor for end in _COUPLING_STEPS]
    missing = grids.missing
    shade = _colours(grids.regret, behind, "s", missing, grids.failed)
    ends = [-end for end in sizes[::-1]] + sizes
    tilt = _colours(grids.coupling, ends, "d", missing)
    steps = [significant(table.distances(end)) for end in (0, *behind)]
    shade_legend = [
        *((f"s{i}", f"{low} to {high}") for i, (low, high) in enumerate(itertools.pairwise(steps))),
        ("s8", f"over {steps[-1]} {unit} behind"),
        ("failed", "every run failed"),
    ]
    tilt_legend = [
        ("d0", f"under {significant(table.distances(-sizes[-1]))} {unit}"),
        ("d5", "none"),
        ("d10", f"over {significant(table.distances(sizes[-1]))}"),
    ]

    plain = [[""] * len(line) for line in shade]
    score = _measure(
        "score", f"{table.score}, colour: behind the best", grids.scores, score_format(table),
        missing, shade, shade_legend, low_first=not table.higher_is_better,
    )  # fmt: skip
    return (
        _marked(score, table, grids),
        _measure("regret", f"behind the best, {unit}", table.distances(grids.regret),
                 f".{decimals}f", missing, shade, shade_legend, low_first=True),
        _measure("coupling", f"coupling, {unit}", table.distances(grids.coupling),
                 f"+.{decimals}f", missing, tilt, tilt_legend),
        _measure("seeds", "number of scores n", grids.counts, "g", missing, plain, []),
    )  # fmt: skip


def score_format(table: ScoreTable) -> str:
    """Return how cells print scores as they were measured: a format of Python."""
    if table.relative:
        return ",.0f" if table.measured().max(axis=None) >= 999.5 else ".3g"
    return ".1f" if table.unit == "points" else ".2f"


def _measure(
    key: str,
    title: str,
    values: np.ndarray,
    format_spec: str,
    missing: np.ndarray,
    colours: _Grid,
    legend: list[tuple[str, str]],
    *,
    low_first: bool = False,
) -> Measure:
    """Return a measure without bold cells; arguments as the fields of `Measure`."""
    texts = [
        ["·" if gone else format(value, format_spec) for value, gone in zip(*lines, strict=True)]
        for lines in zip(values, missing, strict=True)
    ]
    return Measure(
        key=key,
        title=title,
        texts=texts,
        colours=colours,
        values=[[_rounded(value, 8) for value in line] for line in values],
        strong=[[False] * len(line) for line in texts],
        legend=legend,
        low_first=low_first,
    )


def _marked(score: Measure, table: ScoreTable, grids: _Grids) -> Measure:
    """Return the measure with the signs of the marks in its texts, and the best cells in bold."""
    texts = [list(line) for line in score.texts]
    for (o, b), mark in np.ndenumerate(grids.marks):
        if not grids.missing[o, b]:
            # Where every cell has one seed, the notes of the table say so once.
            single = ONE_SEED_SIGN if grids.counts[o, b] == 1 and not table.one_seed else ""
            texts[o][b] = MARK_SIGNS.get(mark, "") + texts[o][b] + single
    strong = np.isin(grids.marks, ("best", "top4")).tolist()
    return dataclasses.replace(score, texts=texts, strong=strong)


def _cells(
    analysis: Analysis,
    rows: list[str],
    columns: list[str],
    grids: _Grids,
    curves: dict[tuple[str, str], dict[str, list]],
) -> list[list[dict[str, Any]]]:
    """Return facts and curve of every cell."""
    happened = {
        (row["optimizer"], row["backbone"]): format_value(row["label"])
        for row in (analysis.failures.to_dict("records") if len(analysis.failures) else ())
    }
    runs = dict(list(analysis.table.runs.groupby(["optimizer", "backbone"], sort=False)))
    cells = []
    for o, optimizer in enumerate(rows):
        line = []
        for b, backbone in enumerate(columns):
            key = optimizer, backbone
            facts = _facts(analysis.table, runs.get(key), grids, o, b)
            mark = {"top4": "top 4"}.get(grids.marks[o, b], grids.marks[o, b])
            if mark in ("best", "top 4", "outlier"):
                facts.append(("mark", f"{mark} by {analysis.outliers.rule}"))
            if grids.counts[o, b] == 1:
                facts.append(("note", "one score: its noise is not known"))
            if key in happened:
                facts.append(("what happened", happened[key]))
            line.append({"facts": facts, "curve": curves.get(key)})
        cells.append(line)
    return cells


def _facts(
    table: ScoreTable, runs: pandas.DataFrame | None, grids: _Grids, o: int, b: int
) -> list[tuple[str, str]]:
    """Return name and text of what is known about cell (o, b)."""
    if runs is None:
        return [("score", "no run")]
    known = table.as_measured(runs["score"].dropna())
    unit = " %" if table.unit == "points" else f" {table.score_unit}"
    facts = [("score", format_value(grids.scores[o, b]) + unit), ("n", f"{len(known)}")]
    if len(known) > 1:
        facts.append(("std over seeds", format_value(float(known.std()))))
        facts.append(("lowest to highest", f"{known.min():z.2f} to {known.max():z.2f}"))
        seeds = [f"{seed}" for seed in runs["seed"].head(8)]
        facts.append(("seeds", ", ".join(seeds) + (", ..." if len(runs) > 8 else "")))
    for column, name in (("learning_rate", "learning rate"), ("weight_decay", "weight decay")):
        values = sorted(set(runs[column].dropna()))
        if values:
            texts = (format_value(float(value), "rate") for value in values[:4])
            facts.append((name, ", ".join(texts)))
    regret, coupling = (table.distances(grid[o, b]) for grid in (grids.regret, grids.coupling))
    unit = " %" if table.relative else ""
    facts += [
        ("behind the best", f"{format_value(regret)}{unit}" if np.isfinite(regret) else ""),
        ("coupling", f"{coupling:+.2f}{unit}" if np.isfinite(coupling) else ""),
    ]
    unfinished = runs["status"][runs["status"] != "finished"].value_counts()
    for status, count in unfinished.items():
        name = format_value(str(status).replace("_", " "))
        facts.append((name, f"{count} of {len(runs)} runs"))
    return [fact for fact in facts if fact[1]]


def _curves(
    curves: pandas.DataFrame | None,
) -> tuple[dict[tuple[str, str], dict[str, list]], str]:
    """Return the curve of each cell, with few digits, and what the curves show."""
    if curves is None or not len(curves):
        return {}, ""
    measure = "accuracy" if curves["accuracy"].notna().any() else "loss"
    found = {
        key: {
            "x": [_rounded(value, 5) for value in run["epoch"].fillna(0)],
            "y": [_rounded(value, 4) for value in run[measure]],
        }
        for key, run in curves.groupby(["optimizer", "backbone"], sort=False)
    }
    return found, "validation accuracy, %" if measure == "accuracy" else "training loss"


def _colours(
    values: np.ndarray,
    ends: Sequence[float],
    prefix: str,
    missing: np.ndarray,
    failed: np.ndarray | None = None,
) -> _Grid:
    """Return the CSS class of every cell: the step of its value, "missing" or "failed"."""
    steps = np.searchsorted(ends, np.where(np.isfinite(values), values, 0))
    classes = np.char.add(prefix, steps.astype(str)).astype(object)
    classes[missing] = "missing"
    if failed is not None:
        classes[failed] = "failed"
    return classes.tolist()


def _largest(values: np.ndarray) -> float:
    """Return a typical large value, for the end of the scale of colours."""
    known = values[np.isfinite(values)]
    return (float(np.quantile(known, 0.95)) or 1.0) if len(known) else 1.0


def _rounded(value: float, digits: int) -> float | None:
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None
