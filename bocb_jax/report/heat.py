"""What the heat map of a report shows: texts and colours of every measure, facts of every cell."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling.analysis import Analysis
from bocb_jax.report.document import text
from bocb_jax.report.plots import SIGNS
from bocb_jax.report.style import colour_steps, ink_on, label

# Upper ends of the colours' steps, in points: below the best, and of the coupling's size.
_BEHIND = (0.5, 1, 2, 3, 4, 6, 8, 10)
_COUPLING = (0.5, 1, 2, 4, 8)
LEGENDS = ("★ best", "▲ top 4", "▼ outlier", "° one seed")


@dataclasses.dataclass(frozen=True)
class HeatData:
    """The heat map: lists by optimizer, then by backbone."""

    optimizers: tuple[str, ...]
    backbones: tuple[str, ...]
    measures: tuple[dict[str, Any], ...]  # the first is shown first
    cells: list[list[dict[str, Any]]]
    best: list[int | None]  # by backbone, the optimizer whose curve is the best run's
    curve_measure: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def palette() -> str:
    """The colours of the classes s0 to s8 (behind the best) and d0 to d10 (coupling), as CSS."""
    steps = {f"s{i}": c for i, c in enumerate(colour_steps("cividis_r", 9, 0.03, 0.97))}
    # Orange is below, blue above; the two ends differ in lightness, for grey.
    steps |= {f"d{i}": c for i, c in enumerate(colour_steps("PuOr", 11, 0.08, 0.92))}
    rules = []
    for name, colour in steps.items():
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        rules.append(
            f"#heat td.{name}, i.{name} {{ background: {colour}; color: {ink_on(*parts)}; }}"
        )
    return "\n".join(rules)


def build(analysis: Analysis, curves: pandas.DataFrame | None = None) -> HeatData:
    """The heat map of an analysis; optimizers by mean regret, backbones by cluster if there are."""
    table = analysis.table
    rows = list(analysis.regret.mean(axis=1).sort_values(kind="stable").index)
    columns = list(analysis.regret.columns)
    if analysis.clusters is not None:
        order = [name for name in analysis.clusters.order if name in columns]
        columns = order + [name for name in columns if name not in order]

    def grid(frame):
        return frame.reindex(index=rows, columns=columns).to_numpy()

    scores, regret, coupling = (
        grid(f).astype(float) for f in (table.matrix(), analysis.regret, analysis.coupling)
    )
    counts, failed = grid(table.counts()), grid(table.failed()).astype(bool)
    marks = grid(analysis.marks.marks)
    one_seed = counts == 1
    missing = ~np.isfinite(scores)
    factor = 1.0 if table.unit == "points" else _scale(regret) / _BEHIND[-1]
    behind = [end * factor for end in _BEHIND]
    sizes = [end * factor for end in _COUPLING]
    shade = _classes(regret, behind, "s", missing, failed)
    tilt = _classes(coupling, [-end for end in sizes[::-1]] + sizes, "d", missing, None)
    decimals = 1 if table.unit == "points" else 2
    some = not table.one_seed  # where every cell has one figure, the source says so once

    def written(values, form):
        return [
            ["·" if gone else form(value) for value, gone in zip(line, gones, strict=True)]
            for line, gones in zip(values, missing, strict=True)
        ]

    texts = written(scores, lambda value: f"{value:.{decimals}f}")
    for (o, b), mark in np.ndenumerate(marks):
        if not missing[o, b]:
            texts[o][b] = SIGNS.get(mark, "") + texts[o][b] + "°" * bool(some and one_seed[o, b])
    strong = np.isin(marks.astype(str), ("best", "top4"))
    unit = table.unit
    legend = [(f"s{i}", f"{_end(a)} to {_end(b)}") for i, (a, b) in enumerate(_pairs([0, *behind]))]
    legend.append(("s8", f"over {_end(behind[-1])} {unit} behind"))
    legend.append(("failed", "every run failed"))
    signs = [
        ("d0", f"under -{_end(sizes[-1])} {unit}"),
        ("d5", "none"),
        ("d10", f"over {_end(sizes[-1])}"),
    ]
    measures = [
        _measure("score", f"{table.score}, colour: behind the best", texts, shade, scores, legend,
                 strong=strong, low_first=not table.higher_is_better),
        _measure("regret", f"behind the best, {unit}",
                 written(regret, lambda v: f"{v:.{decimals}f}"), shade, regret, legend,
                 low_first=True),
        _measure("coupling", f"coupling, {unit}", written(coupling, lambda v: f"{v:+.{decimals}f}"),
                 tilt, coupling, signs),
        _measure("seeds", "number of figures n", written(counts, lambda v: f"{v:g}"),
                 [["" for _ in columns] for _ in rows], counts.astype(float), []),
    ]  # fmt: skip
    thin, measured = _curves(curves)
    cells = []
    groups = dict(list(table.runs.groupby(["optimizer", "backbone"], sort=False)))
    for o, optimizer in enumerate(rows):
        line = []
        for b, backbone in enumerate(columns):
            place = (optimizer, backbone)
            facts = _facts(analysis, groups.get(place), scores[o, b], regret[o, b], coupling[o, b])
            if marks[o, b] in ("best", "top4", "outlier"):
                name = "top 4" if marks[o, b] == "top4" else marks[o, b]
                facts.append(["mark", f"{name} by {analysis.marks.rule}"])
            if one_seed[o, b]:
                facts.append(["note", "one figure: its noise is not known"])
            line.append({"facts": facts, "curve": thin.get(place)})
        cells.append(line)
    for row in analysis.failures.to_dict("records") if len(analysis.failures) else ():
        if row["optimizer"] in rows and row["backbone"] in columns:
            cell = cells[rows.index(row["optimizer"])][columns.index(row["backbone"])]
            cell["facts"].append(["what happened", text(row["label"])])
    best = [
        None if np.isnan(regret[:, b]).all() else int(np.nanargmin(regret[:, b]))
        for b in range(len(columns))
    ]
    return HeatData(
        optimizers=tuple(label(name, 60) for name in rows),
        backbones=tuple(label(name, 60) for name in columns),
        measures=tuple(measures),
        cells=cells,
        best=best,
        curve_measure=measured,
    )


def _facts(analysis, runs, score, behind, coupling) -> list[list[str]]:
    unit = analysis.table.unit
    if runs is None:
        return [["score", "no run"]]
    known = runs["score"].dropna()
    facts = [
        ["score", text(score) + (" %" if unit == "points" else f" {unit}")],
        ["n", f"{len(known)}"],
    ]
    if len(known) > 1:
        facts.append(["std over seeds", text(float(known.std()))])
        facts.append(["lowest to highest", f"{known.min():.2f} to {known.max():.2f}"])
        shown = [f"{seed}" for seed in runs["seed"].head(8)]
        facts.append(["seeds", ", ".join(shown) + (", ..." if len(runs) > 8 else "")])
    for column, name in (("learning_rate", "learning rate"), ("weight_decay", "weight decay")):
        values = sorted(set(runs[column].dropna()))
        if values:
            facts.append([name, ", ".join(text(float(value), "rate") for value in values[:4])])
    facts += [
        ["behind the best", text(behind)],
        ["coupling", f"{coupling:+.2f}" if np.isfinite(coupling) else ""],
    ]
    bad = runs["status"][runs["status"] != "finished"].value_counts()
    for status, count in bad.items():
        facts.append([text(status.replace("_", " ")), f"{count} of {len(runs)} runs"])
    return [pair for pair in facts if pair[1]]


def _curves(curves) -> tuple[dict, str]:
    if curves is None or not len(curves):
        return {}, ""
    measure = "accuracy" if curves["accuracy"].notna().any() else "loss"
    found = {}
    for place, run in curves.groupby(["optimizer", "backbone"], sort=False):
        y = [None if not np.isfinite(v) else float(f"{v:.4g}") for v in run[measure]]
        x = [float(f"{v:.5g}") for v in run["epoch"].fillna(0)]
        found[place] = {"x": x, "y": y}
    return found, "validation accuracy, %" if measure == "accuracy" else "training loss"


def _measure(key, title, texts, colours, values, legend, *, strong=None, low_first=False) -> dict:
    values = [[float(f"{v:.8g}") if np.isfinite(v) else None for v in line] for line in values]
    strong = [[False] * len(line) for line in values] if strong is None else strong.tolist()
    return {"key": key, "title": title, "texts": texts, "colours": colours, "values": values,
            "strong": strong, "legend": legend, "low_first": low_first}  # fmt: skip


def _classes(values, ends, prefix, missing, failed) -> list[list[str]]:
    steps = np.searchsorted(ends, np.where(np.isfinite(values), values, 0))
    found = [[f"{prefix}{step}" for step in line] for line in steps]
    for o, b in zip(*np.nonzero(missing), strict=True):
        found[o][b] = "missing"
    if failed is not None:
        for o, b in zip(*np.nonzero(failed), strict=True):
            found[o][b] = "failed"
    return found


def _scale(values) -> float:
    known = values[np.isfinite(values)]
    return float(np.quantile(known, 0.95)) or 1.0 if len(known) else 1.0


def _pairs(ends):
    return itertools.pairwise(ends)


def _end(value: float) -> str:
    return f"{value:.3g}"
