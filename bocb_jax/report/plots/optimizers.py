"""Optimizers compared over backbones: regret, mean ranks and performance profiles."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bocb_jax.coupling.ranking import Profiles
from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.significance import Nemenyi
from bocb_jax.report.style import FAINT, INK, LINES, figure, house_style, label

_BLUE = "#0b55a5"
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50)


def draw_regrets(analysis: Analysis) -> Figure:
    """Draw the regret of each optimizer: a dot per backbone, a bar at the mean, the worst named."""
    regret, unit = analysis.regret, analysis.table.unit
    order = list(regret.mean(axis=1).sort_values(kind="stable").index)
    with house_style():
        picture = figure(7, 1.0 + 0.26 * len(order))
        axes = picture.subplots()
        for row, name in enumerate(order):
            values = regret.loc[name].dropna()
            axes.plot(values, [row] * len(values), "o", ms=4.5, mfc="none", mec=FAINT, mew=0.9)
            if len(values):
                axes.plot([values.mean()] * 2, [row - 0.36, row + 0.36], color=_BLUE, lw=2.6)
                worst = label(values.idxmax(), 16)
                axes.annotate(
                    worst, (values.max(), row), (6, 0), textcoords="offset points", va="center",
                    fontsize=7, color=FAINT,
                )  # fmt: skip
        names = [f"{label(n, 18)}  n={regret.loc[n].count()}" for n in order]
        axes.set_yticks(range(len(order)), names)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xscale("symlog", linthresh=1)
        ticks = [tick for tick in _TICKS if tick <= max(axes.get_xlim()[1], 1)]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlim(left=-0.05)
        axes.axvline(1, color=FAINT, lw=0.8, ls=":")
        axes.set_xlabel(
            f"behind the best optimizer of the backbone, {unit}; bar: mean (log scale above 1)"
        )
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return picture


def draw_critical_difference(nemenyi: Nemenyi) -> Figure:
    """Draw mean ranks with the critical difference (Demšar 2006), one row per optimizer.

    Optimizers joined by a vertical bar do not differ at the level of the test.
    """
    ranks = nemenyi.mean_ranks
    groups = [group for group in nemenyi.groups if len(group) > 1]
    with house_style():
        picture = figure(7, 1.2 + 0.26 * len(ranks))
        axes, side = picture.subplots(
            1, 2, sharey=True, width_ratios=(5, max(1.0, 0.22 * len(groups)))
        )
        rows = np.arange(len(ranks))
        axes.hlines(rows, 1, ranks, color=FAINT, lw=0.8)
        axes.plot(ranks, rows, "o", color=_BLUE, ms=5.5)
        for row, value in enumerate(ranks):
            axes.annotate(
                f"{value:.1f}", (value, row), (7, 0), textcoords="offset points", va="center",
                fontsize=7.5,
            )  # fmt: skip
        axes.set_yticks(rows, [label(name, 18) for name in ranks.index])
        axes.set_ylim(len(ranks) - 0.4, -1.6)
        end = 1 + nemenyi.critical_difference
        axes.set_xlim(1, max(ranks.max() * 1.06, 1 + nemenyi.critical_difference * 1.05))
        axes.plot([1, end], [-1, -1], color=INK, lw=2, marker="|", ms=8)
        axes.annotate(
            f"critical difference {nemenyi.critical_difference:.2f}",
            (end, -1), (7, 0), textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
        axes.set_xlabel(
            f"mean rank over {nemenyi.backbones} backbones, 1 is best; "
            f"Nemenyi at level {nemenyi.alpha:g}"
        )
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        row_of = {name: row for row, name in enumerate(ranks.index)}
        _join(side, [[row_of[name] for name in group] for group in groups])
    return picture


def _join(axes: Axes, groups: list[list[int]]) -> None:
    """Draw a vertical bar from the first to the last row of each group."""
    for column, rows in enumerate(groups):
        ends = [min(rows) - 0.3, max(rows) + 0.3]
        axes.plot([column, column], ends, color=INK, lw=3.2, solid_capstyle="round")
    axes.set_xlim(-0.8, max(len(groups), 1) - 0.2)
    axes.set_axis_off()
    axes.set_title("joined: no\ndifference\nshown", fontsize=7.5)


def draw_profiles(profiles: Profiles, unit: str) -> Figure:
    """Draw performance profiles: the share of backbones within tau of the best, against tau.

    The optimizers with the largest areas are drawn in colour and named, the others in grey.
    """
    area = profiles.scores["regret"].sort_values(ascending=False, kind="stable")
    named = list(area.index[: len(LINES)])
    frame = profiles.by_regret
    with house_style():
        picture = figure(7, 3.9)
        axes = picture.subplots()
        x = frame.index.to_numpy(float)
        for name in frame.columns:
            if name not in named:
                axes.step(x, frame[name], where="post", color=FAINT, lw=0.7, alpha=0.6)
        for name, (colour, dash, marker) in zip(named, LINES, strict=False):
            axes.step(
                x,
                frame[name],
                where="post",
                color=colour,
                ls=dash,
                lw=1.7,
                label=label(name, 18),
                marker=marker,
                ms=4,
                markevery=max(len(x) // 12, 1),
            )
        axes.set_ylim(0, 1.02)
        axes.set_xlim(x.min(), x.max())
        axes.set_xlabel(f"within this many {unit} of the best")
        axes.set_ylabel(f"share of {profiles.backbones} backbones")
        if len(frame.columns) > len(named):
            axes.plot([], [], color=FAINT, lw=0.7, label="others")
        picture.legend(loc="outside right upper")
    return picture
