"""Tuning: distance to the usual values, budget, and sensitivity to the learning rate."""

from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.coupling.tuning import Budget, Hyperparameters
from bocb_jax.report.style import FAILED, FAINT, INK, LINES, figure, house_style, label

_BLUE = "#0b3c7d"
_BOX: dict[str, Any] = {
    "patch_artist": True,
    "widths": 0.55,
    "showfliers": False,
    "medianprops": {"color": INK, "linewidth": 1.8},
    "whiskerprops": {"color": FAINT},
    "capprops": {"color": FAINT},
    "boxprops": {"facecolor": "#b9c6dd", "edgecolor": FAINT},
}


def draw_distances(tuned: Hyperparameters) -> Figure:
    """Draw how far the tuned values are from the usual ones, by backbone and by optimizer."""
    distances = tuned.distances
    halves = (("by backbone", distances.T), ("by optimizer", distances))
    longest = max(len(frame) for _, frame in halves)
    with house_style():
        picture = figure(9, 1.2 + 0.25 * longest)
        for axes, (title, frame) in zip(picture.subplots(1, 2), halves, strict=True):
            _boxes(axes, frame.dropna(how="all"))
            axes.set_title(title)
            axes.set_xlabel("steps of lr + weight decay from the usual")
    return picture


def _boxes(axes: Axes, frame: pandas.DataFrame) -> None:
    """Draw a box plot and the single values of each row, sorted by median."""
    order = frame.median(axis=1).sort_values(kind="stable").index
    values = [frame.loc[name].dropna().to_numpy(float) for name in order]
    rows = list(range(len(order)))
    if values:
        axes.boxplot(values, positions=rows, orientation="horizontal", **_BOX)
    for row, group in enumerate(values):
        # Equal values side by side, so that none hides another.
        offset = np.zeros(len(group))
        for value in np.unique(group):
            same = group == value
            offset[same] = np.linspace(-0.3, 0.3, same.sum() + 2)[1:-1]
        axes.plot(group, row + offset, "o", ms=2.2, color=_BLUE, alpha=0.75)
    names = [f"{label(n, 18)}  n={len(v)}" for n, v in zip(order, values, strict=True)]
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlim(-0.3, max([1, *(group.max() for group in values)]) + 0.3)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def draw_budget(budget: Budget, table: ScoreTable) -> Figure:
    """Draw the expected best score, and the coupling, against the number of trials.

    Args:
      budget: of the table.
      table: the scores, for their unit and direction.
    """
    with house_style():
        picture = figure(9, 3.6)
        left, right = picture.subplots(1, 2)
        _expected_best(left, budget.curves, table)
        if budget.coupling.empty:  # too few pairs have trials for an additive fit
            right.remove()
            return picture
        coupling = budget.coupling.sort_index()
        x = coupling.index
        right.plot(
            x, table.distances(coupling["interaction_std"]), "o-", color=_BLUE, label="coupling"
        )
        right.plot(
            x, table.distances(coupling["mean_regret"]), "s--", color="#b58900", label="mean regret"
        )
        right.set_ylim(bottom=0)
        right.set_xlabel("trials of learning rate and weight decay")
        right.set_ylabel(table.distance_unit)
        cells = int(coupling["cells"].max())
        right.set_title(f"what is left between pairs, {cells} cells")
        right.legend()
        _tick_whole_numbers(right)
    return picture


def _expected_best(axes: Axes, curves: pandas.DataFrame, table: ScoreTable) -> None:
    """Draw a line per optimizer, the mean over backbones; the best ones in colour."""
    mean = curves.groupby(["optimizer", "trials"], sort=False)["expected_best"].mean().unstack(0)
    mean = mean.sort_index()
    order = (-table.sign * mean.iloc[-1]).sort_values(kind="stable").index
    named, mean = list(order[: len(LINES)]), table.as_measured(mean)
    for name in mean.columns:
        if name not in named:
            axes.plot(mean.index, mean[name], color=FAINT, lw=0.7, alpha=0.6)
    for name, (colour, dash, marker) in zip(named, LINES, strict=False):
        look = {"color": colour, "ls": dash, "marker": marker, "ms": 3.5}
        axes.plot(mean.index, mean[name], label=label(name, 16), **look)
    axes.set_xlabel("trials of learning rate and weight decay")
    axes.set_ylabel(f"expected best, mean over backbones, {table.score_unit}")
    backbones = curves["backbone"].nunique()
    axes.set_title(f"score, {backbones} backbone{'s' * (backbones != 1)}")
    axes.legend(fontsize=7)
    _tick_whole_numbers(axes)


def _tick_whole_numbers(axes: Axes) -> None:
    # As matplotlib's default locator, but for `integer`.
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))


def has_rates(trials: pandas.DataFrame) -> bool:
    """Return whether some pair was tried at two or more learning rates."""
    if "learning_rate" not in trials or trials["learning_rate"].isna().all():
        return False
    return bool((trials.groupby(["backbone", "optimizer"])["learning_rate"].nunique() > 1).any())


def draw_sensitivity(table: ScoreTable) -> Figure:
    """Draw score against learning rate, a panel for each optimizer: how wide is the good region?

    A thin line is a backbone: for each learning rate the best over weight decays, as distance to
    the best of its pair. The thick line is the median over backbones. Crosses at the lower edge
    are failed runs.

    Args:
      table: with trials.
    """
    trials = table.trials
    assert trials is not None
    optimizers = [
        name for name in table.optimizers if has_rates(trials[trials["optimizer"] == name])
    ]
    across = min(4, max(len(optimizers), 1))
    down = -(-max(len(optimizers), 1) // across)
    with house_style():
        picture = figure(2.4 * across, 0.6 + 1.75 * down)
        panels = picture.subplots(down, across, squeeze=False).ravel()
        for axes, name in zip(panels, optimizers, strict=False):
            mine = trials[trials["optimizer"] == name]
            floor = -10 if table.unit == "points" else None
            _distances_by_rate(axes, mine, table.sign, floor)
            axes.set_title(f"{label(name, 16)}  n={len(mine)}", fontsize=8.5)
        for axes in panels[len(optimizers) :]:
            axes.set_axis_off()
        picture.supxlabel("learning rate", fontsize=9)
        picture.supylabel(f"distance to the best of the pair, {table.unit}", fontsize=9)
    return picture


def _distances_by_rate(
    axes: Axes, trials: pandas.DataFrame, sign: int, floor: float | None
) -> None:
    """Draw the panel of one optimizer.

    Args:
      axes: of the panel.
      trials: of this optimizer.
      sign: 1 if higher scores are better, else -1.
      floor: lower edge of the panel; None: the lowest distance.
    """
    scored = trials[trials["status"] == "finished"].dropna(subset=["score", "learning_rate"])
    lines = []
    for _, pair in scored.groupby("backbone", sort=False):
        best = sign * pair.groupby("learning_rate")["score"].agg("max" if sign > 0 else "min")
        lines.append(best - best.max())
        axes.plot(lines[-1].index, lines[-1], color=FAINT, lw=0.7, alpha=0.8)
    if lines:
        median = pandas.concat(lines, axis=1).median(axis=1)
        axes.plot(median.index, median, "o-", color=_BLUE, lw=1.8, ms=3.5)
    failed = trials[trials["status"] != "finished"]["learning_rate"].dropna()
    if floor is None:
        floor = min([line.min() for line in lines] + [-1e-3])
    axes.set_ylim(floor * 1.06, -floor * 0.05)
    axes.plot(failed, [floor] * len(failed), "x", color=FAILED, ms=5)
    if (trials["learning_rate"].dropna() > 0).all():
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
