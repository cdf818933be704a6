"""How much choice each backbone leaves, and what is lost with a few optimizers."""

from collections.abc import Mapping

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.report.style import FAINT, INK, LINES, figure, house_style, label

_PANEL_LINES = len(LINES)  # more could not be told apart
_MOST_PANELS = 6


def draw_freedom(
    curves: pandas.DataFrame, table: ScoreTable, camps: Mapping[str, str] | None = None
) -> Figure:
    """Draw the share of the optimizers within any distance of the best, a line per backbone.

    Backbones of one camp share panels, a few to a panel, those with the least choice first; the
    others are drawn in grey in each panel.

    Args:
      curves: from `Analysis.freedom_curve`.
      table: the scores, for what counts as equal.
      camps: backbone -> camp, where they are known.
    """
    panels = _panels(curves, table, camps or {})
    rows = -(-len(panels) // 2) if len(panels) > 1 else 1
    columns = 2 if len(panels) > 1 else 1
    distances = curves.index.to_numpy(float)
    start = _start(distances, table.equal)
    end = 1.1 * max(distances.max(initial=0.0), 2 * start, 2 * table.equal)
    with house_style():
        picture = figure(9.4 if columns == 2 else 7, (0.5 + 2.6 * rows) if columns == 2 else 3.4)
        grid = picture.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.ravel()[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, names) in zip(grid.ravel(), panels, strict=False):
            _panel(axes, curves, names, title, (start, end), table.equal)
        text = f"distance to the best of the backbone, {table.unit} (log scale)"
        named = sum(len(names) for _, names in panels)
        if named < len(curves.columns):
            rest = len(curves.columns) - named
            text += f"\n{rest} of {len(curves.columns)} backbones are only in grey"
        picture.supxlabel(text, fontsize=9)
        picture.supylabel("share of the optimizers", fontsize=9)
    return picture


def _panels(
    curves: pandas.DataFrame, table: ScoreTable, camps: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    """Return title and backbones of each panel."""
    at = curves.index.searchsorted(table.equal + 1e-9, side="right") - 1
    least = curves.iloc[max(at, 0)].sort_values(kind="stable")
    groups: dict[str, list[str]] = {}
    for name in least.index:
        groups.setdefault(camps.get(str(name), ""), []).append(str(name))
    titles = {
        "SGD-like": "SGD-like optimizers lead",
        "adaptive": "adaptive optimizers lead",
        "either": "neither kind is shown to lead",
        "": "",
    }
    panels = []
    for camp, title in titles.items():
        names = groups.get(camp, [])
        if names:
            parts = np.array_split(np.array(names, object), -(-len(names) // _PANEL_LINES))
            panels += [(title, [str(name) for name in part]) for part in parts]
    return panels[:_MOST_PANELS]


def _start(distances: np.ndarray, equal: float) -> float:
    """Return where the axis begins: below what counts as equal and below most distances."""
    positive = distances[distances > 1e-9]
    ends = [equal, *([float(np.median(positive))] if len(positive) else [])]
    return min((end for end in ends if end > 0), default=4.0) / 4


def _panel(
    axes: Axes,
    curves: pandas.DataFrame,
    names: list[str],
    title: str,
    ends: tuple[float, float],
    equal: float,
) -> None:
    x = np.concatenate([[ends[0]], curves.index.to_numpy(float).clip(ends[0]), [ends[1]]])

    def heights(name: str) -> np.ndarray:
        column = curves[name].to_numpy(float)
        return np.concatenate([column[:1], column, column[-1:]])

    for name in curves.columns:
        axes.step(x, heights(str(name)), where="post", color=FAINT, lw=0.5, alpha=0.35)
    for name, (colour, dash, marker) in zip(names, LINES, strict=False):
        axes.step(
            x, heights(name), where="post", color=colour, ls=dash, lw=1.6, label=label(name, 20),
            marker=marker, ms=3.5, markevery=max(len(x) // 8, 1),
        )  # fmt: skip
    axes.axvline(equal, color=INK, lw=0.8, ls=":")
    axes.set_xscale("log")
    axes.set_xlim(*ends)
    axes.set_ylim(0, 1.03)
    axes.tick_params(labelleft=True, labelbottom=True)
    ticks = _ticks(ends)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(title, fontsize=8.5)
    axes.legend(loc="lower right", fontsize=7)


def _ticks(ends: tuple[float, float]) -> list[float]:
    """Return ticks of 1, 2 and 5 times powers of ten, fewer on long scales."""
    low, high = np.log10(ends)
    steps = (1, 2, 5) if high - low < 2.5 else (1, 3) if high - low < 4 else (1,)
    powers = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in ticks if ends[0] <= tick <= ends[1]]


def draw_portfolio(portfolio: pandas.DataFrame, table: ScoreTable) -> Figure:
    """Draw the regret that remains with the best k optimizers, against k.

    Args:
      portfolio: from `bocb_jax.coupling.portfolio.portfolio`.
      table: the scores, for the unit and what counts as equal.
    """
    lines = (
        ("worst", "worst backbone", LINES[1]),
        ("mean", "mean over backbones", LINES[0]),
        ("left_out", "mean, families left out of the choice", LINES[2]),
    )
    with house_style():
        picture = figure(7, 3.4)
        axes = picture.subplots()
        k = portfolio.index.to_numpy(int)
        for key, text, (colour, dash, marker) in lines:
            values = portfolio[key].to_numpy(float)
            if np.isfinite(values).any():
                axes.plot(k, values, color=colour, ls=dash, marker=marker, ms=5, lw=1.6, label=text)
        names = ["\n".join(label(name, 16) for name in names) for names in portfolio["optimizers"]]
        axes.set_xticks(k, [f"{n}\n{text}" for n, text in zip(k, names, strict=True)], fontsize=7.5)
        axes.set_xlim(k.min() - 0.4, k.max() + 0.4)
        axes.set_ylim(bottom=0)
        axes.axhline(table.equal, color=INK, lw=0.8, ls=":")
        axes.set_ylabel(f"regret, {table.unit}")
        axes.set_xlabel("number of optimizers tried, and which")
        axes.legend(loc="upper right")
    return picture
