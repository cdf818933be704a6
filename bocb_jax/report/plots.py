"""Pictures of a table of scores: the heat map, and what the statistics say of it.

Each function takes a section of an `Analysis` and returns a matplotlib figure; `draw_all` draws
every picture that an analysis can give. Pictures of tuning and of curves: `plots_tuning`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas
from matplotlib import colormaps, colors
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from bocb_jax.report import plots_tuning, ridges
from bocb_jax.coupling.analysis import Analysis, Clusters, Decomposition, Nemenyi, Profiles, Structure
from bocb_jax.report.style import CATEGORIES, FAILED, FAINT, INK, LINES, figure, house_style, ink_on, label

if TYPE_CHECKING:
    from bocb_jax.patterns.cells import Weights

# Every picture that `draw_all` may draw; "ridges" stands for all of `ridge_names`.
NAMES = (
    "heat_map", "regret", "shares", "critical_difference", "biplot", "profiles", "robustness",
    "budget", "sensitivity", "training_curves", "ridges",
)  # fmt: skip
SIGNS = {"best": "★", "top4": "▲", "outlier": "▼", "inlier": "", "missing": ""}


def heat_map(analysis: Analysis, *, deepest: float = 10.0) -> Figure:
    """Scores with their marks; the colour is the distance to the best of the column.

    Optimizers are sorted by mean regret, backbones by cluster where there are clusters. Cells
    whose runs all failed are grey and hatched.

    Args:
      analysis: of any table.
      deepest: distance at which the colour scale ends, in points; in other units the largest one.
    """
    regret = analysis.regret
    rows = list(regret.mean(axis=1).sort_values(kind="stable").index)
    clusters = analysis.clusters
    columns = [c for c in clusters.order if c in regret] if clusters else list(regret.columns)
    columns += [c for c in regret.columns if c not in columns]
    regret = regret.reindex(index=rows, columns=columns)
    scores = analysis.table.matrix().reindex(index=rows, columns=columns)
    failed = analysis.table.failed().reindex(index=rows, columns=columns)
    one_seed = analysis.table.counts().reindex(index=rows, columns=columns) == 1
    everywhere = analysis.table.one_seed
    marks = analysis.marks.marks.reindex(index=rows, columns=columns)
    if analysis.table.unit != "points":
        deepest = float(np.nanmax(regret.to_numpy(), initial=0)) or 1.0
    wide, high = 1.6 + 0.52 * len(columns), 1.7 + 0.27 * len(rows)
    with house_style():
        picture = figure(max(wide, 5), high)
        axes = picture.subplots()
        scale = colors.Normalize(0, deepest)
        image = axes.imshow(
            regret.to_numpy(float), cmap="cividis_r", norm=scale, aspect="auto", zorder=0
        )
        for (row, column), value in np.ndenumerate(scores.to_numpy(float)):
            if not np.isfinite(value):
                axes.text(column, row, "·", ha="center", va="center", color=FAINT)
                continue
            background = colormaps["cividis_r"](scale(regret.iat[row, column]))[:3]
            if failed.iat[row, column]:
                box = (column - 0.5, row - 0.5), 1, 1
                grey = {"facecolor": FAILED, "hatch": "////", "linewidth": 0}
                axes.add_patch(Rectangle(*box, **grey))
                background = colors.to_rgb(FAILED)
            sign = SIGNS[marks.iat[row, column]]
            single = "°" if one_seed.iat[row, column] and not everywhere else ""
            axes.text(
                column,
                row,
                f"{sign}{value:.{_decimals(analysis)}f}{single}",
                ha="center",
                va="center",
                fontsize=6.8,
                fontweight="bold" if sign in ("★", "▲") else "normal",
                color=ink_on(*background),
                in_layout=False,
            )
        axes.set_xticks(
            range(len(columns)), [label(c, 16) for c in columns], rotation=45, ha="left"
        )
        axes.set_yticks(range(len(rows)), [label(r, 16) for r in rows])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = picture.colorbar(image, ax=axes, shrink=0.6, pad=0.01, extend="max")
        bar.set_label(f"below the best of the column, {analysis.table.unit}")
        bar.outline.set_visible(False)
        note = f"★ best   ▲ top 4   ▼ outlier by {analysis.marks.rule}   grey: every run failed"
        note += "   every cell one figure" if everywhere else "   ° one seed"
        axes.set_xlabel(note, fontsize=7.5, loc="left")
    return picture


def shares(full: Decomposition, without: Decomposition | None) -> Figure:
    """Shares of variance of backbone, optimizer and coupling, with and without what fails."""
    fits = [("all optimizers", full)]
    if without is not None and without.dropped:
        fits.append((f"without {', '.join(label(name, 14) for name in without.dropped)}", without))
    kinds = (
        ("backbone", "#00306f", ""),
        ("optimizer", "#7c7b78", ".."),
        ("interaction", "#f2d13f", "//"),
    )
    with house_style():
        picture = figure(7, 0.9 + 0.6 * len(fits))
        axes = picture.subplots()
        for row, (_, fit) in enumerate(fits):
            left = 0.0
            for term, colour, hatch in kinds:
                share = float(fit.terms.loc[term, "share"])
                axes.barh(row, share, left=left, color=colour, hatch=hatch, height=0.6, linewidth=0)
                if share > 0.04:
                    text = f"{share:.2f}"
                    box = {"facecolor": colour, "edgecolor": "none", "pad": 1}
                    ink = ink_on(*colors.to_rgb(colour))
                    place = (left + share / 2, row)
                    axes.text(*place, text, ha="center", va="center", color=ink, bbox=box)
                left += share
        names = [f"{name}\n{fit.cells} cells, {fit.runs} runs" for name, fit in fits]
        axes.set_yticks(range(len(fits)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the variance of the cell means")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        handles = [
            Patch(
                facecolor=colour, hatch=hatch, label="coupling" if term == "interaction" else term
            )
            for term, colour, hatch in kinds
        ]
        picture.legend(handles=handles, loc="outside upper right", ncols=3)
    return picture


def regrets(analysis: Analysis) -> Figure:
    """What each optimizer costs: a dot a backbone, the mean as a bar, the worst by name."""
    regret, unit = analysis.regret, analysis.table.unit
    order = list(regret.mean(axis=1).sort_values(kind="stable").index)
    with house_style():
        picture = figure(7, 1.0 + 0.26 * len(order))
        axes = picture.subplots()
        for row, name in enumerate(order):
            values = regret.loc[name].dropna()
            axes.plot(values, [row] * len(values), "o", ms=4.5, mfc="none", mec=FAINT, mew=0.9)
            if len(values):
                axes.plot([values.mean()] * 2, [row - 0.36, row + 0.36], color="#0b55a5", lw=2.6)
                worst = label(values.idxmax(), 16)
                axes.annotate(
                    worst, (values.max(), row), (6, 0), textcoords="offset points", va="center",
                    fontsize=7, color=FAINT,
                )  # fmt: skip
        axes.set_yticks(
            range(len(order)), [f"{label(n, 18)}  n={regret.loc[n].count()}" for n in order]
        )
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xscale("symlog", linthresh=1)
        ticks = [
            tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50) if tick <= max(axes.get_xlim()[1], 1)
        ]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlim(left=-0.05)
        axes.axvline(1, color=FAINT, lw=0.8, ls=":")
        axes.set_xlabel(
            f"below the best optimizer of the backbone, {unit}; bar: mean (log scale above 1)"
        )
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return picture


def critical_difference(nemenyi: Nemenyi) -> Figure:
    """Mean ranks with the critical difference (Demsar 2006), upright: names stay readable.

    Optimizers that a vertical bar joins do not differ at the level of the test.
    """
    ranks = nemenyi.mean_ranks
    place = {name: row for row, name in enumerate(ranks.index)}
    bars = [group for group in nemenyi.groups if len(group) > 1]
    with house_style():
        picture = figure(7, 1.2 + 0.26 * len(ranks))
        axes, side = picture.subplots(
            1, 2, sharey=True, width_ratios=(5, max(1.0, 0.22 * len(bars)))
        )
        rows = np.arange(len(ranks))
        axes.hlines(rows, 1, ranks, color=FAINT, lw=0.8)
        axes.plot(ranks, rows, "o", color="#0b55a5", ms=5.5)
        for row, value in enumerate(ranks):
            axes.annotate(
                f"{value:.1f}", (value, row), (7, 0), textcoords="offset points", va="center",
                fontsize=7.5,
            )  # fmt: skip
        axes.set_yticks(rows, [label(name, 18) for name in ranks.index])
        axes.set_ylim(len(ranks) - 0.4, -1.6)
        axes.set_xlim(1, max(ranks.max() * 1.06, 1 + nemenyi.critical_difference * 1.05))
        axes.plot([1, 1 + nemenyi.critical_difference], [-1, -1], color=INK, lw=2, marker="|", ms=8)
        axes.annotate(
            f"critical difference {nemenyi.critical_difference:.2f}",
            (1 + nemenyi.critical_difference, -1), (7, 0), textcoords="offset points", va="center",
            fontsize=8,
        )  # fmt: skip
        axes.set_xlabel(
            f"mean rank over {nemenyi.backbones} backbones, 1 is best; "
            f"Nemenyi at level {nemenyi.alpha:g}"
        )
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        for column, group in enumerate(bars):
            rows_of_group = [place[name] for name in group]
            ends = [min(rows_of_group) - 0.3, max(rows_of_group) + 0.3]
            side.plot([column, column], ends, color=INK, lw=3.2, solid_capstyle="round")
        side.set_xlim(-0.8, max(len(bars), 1) - 0.2)
        side.set_axis_off()
        side.set_title("joined: no\ndifference\nshown", fontsize=7.5)
    return picture


def biplot(
    structure: Structure,
    categories: Mapping[str, str],
    clusters: Clusters | None = None,
) -> Figure:
    """Backbones (arrows' tips) and optimizers (markers) on the first two axes of the coupling.

    A backbone gains with the optimizers that lie in its direction, more than the additive fit
    says, and loses with those on the other side.
    """
    points, tips = structure.optimizers.iloc[:, :2], structure.backbones.iloc[:, :2]
    sizes = {name: float(np.hypot(x, y)) for name, (x, y) in _places(points) + _places(tips)}
    far, usual = max(sizes.values(), default=0.0), float(np.median([*sizes.values()] or [0]))
    # A few that lie far out would press all others together: those get a panel of their own.
    window = 2.2 * usual if far > 4 * usual > 0 else None
    reaches = [far or 1.0] if window is None else [far, window]
    keys = {name: _category(categories.get(name)) for name in points.index}
    with house_style():
        picture = figure(6.4 if window is None else 10.5, 6.2)
        panels = picture.subplots(1, len(reaches), squeeze=False).ravel()
        for axes, reach in zip(panels, reaches, strict=True):
            inner = window if reach == far and window is not None else 0.0
            _panel(axes, points, tips, keys, clusters, sizes, inner, reach)
        if window is not None:
            corner = -window, -window
            panels[0].add_patch(
                Rectangle(corner, 2 * window, 2 * window, fill=False, ls=":", ec=FAINT)
            )
            panels[1].set_title("the dotted square, enlarged", fontsize=8)
        share = [f"{100 * value:.0f} %" for value in structure.shares.iloc[:2]] + ["0 %"]
        picture.supxlabel(f"axis 1: {share[0]} of the coupling", fontsize=9)
        picture.supylabel(f"axis 2: {share[1]} of the coupling", fontsize=9)
        handles = [
            Line2D([], [], ls="", marker=CATEGORIES[key][1], color=CATEGORIES[key][0],
                   label=f"{key}: {CATEGORIES[key][2]}" if key else CATEGORIES[key][2])
            for key in CATEGORIES if key in keys.values()
        ]  # fmt: skip
        handles.append(Line2D([], [], color=FAINT, lw=0.8, label="backbone (italic)"))
        picture.legend(handles=handles, loc="outside upper left", ncols=3)
    return picture


def _places(frame):
    return list(zip(frame.index, frame.to_numpy(float), strict=True))


def _category(key) -> str:
    return key if key in CATEGORIES else ""


def _panel(axes, points, tips, keys, clusters, sizes, inner, reach) -> None:
    """One panel of the biplot, to `reach`; what lies within `inner` stays without a name."""
    axes.axhline(0, color=FAINT, lw=0.6)
    axes.axvline(0, color=FAINT, lw=0.6)
    placed: list[tuple[float, float, float]] = []
    for name, (x, y) in _places(points):
        colour, marker, _ = CATEGORIES[keys[name]]
        axes.plot(x, y, marker, color=colour, ms=6, mec=FAINT, mew=0.4, clip_on=True)
        if max(abs(x), abs(y)) <= reach and sizes[name] > inner:
            _write(axes, placed, x, y, label(name, 14), reach, fontweight="bold")
    for name, (x, y) in _places(tips):
        axes.plot([0, x], [0, y], color=FAINT, lw=0.8)
        number = f" ({clusters.labels[name]})" if clusters and clusters.number > 1 else ""
        if max(abs(x), abs(y)) <= reach and sizes[name] > inner:
            _write(axes, placed, x, y, f"{label(name, 14)}{number}", reach, style="italic")
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlim(-1.12 * reach, 1.12 * reach)
    axes.set_ylim(-1.12 * reach, 1.12 * reach)


def profiles(section: Profiles, unit: str) -> Figure:
    """Performance profiles: on what share of the backbones an optimizer is within tau of the best.

    The six with the largest area are drawn in colour and named, the others in grey.
    """
    area = section.scores["regret"].sort_values(ascending=False, kind="stable")
    return _profile_lines(
        section.by_regret,
        list(area.index[: len(LINES)]),
        x_label=f"within this many {unit} of the best",
        y_label=f"share of {section.backbones} backbones",
    )


def _profile_lines(
    frame: pandas.DataFrame, named: Sequence[str], x_label: str, y_label: str
) -> Figure:
    with house_style():
        picture = figure(7, 3.9)
        axes = picture.subplots()
        x = frame.index.to_numpy(float)
        for name in frame.columns:
            if name not in named:
                axes.step(x, frame[name], where="post", color=FAINT, lw=0.7, alpha=0.6)
        for name, (colour, dash, marker) in zip(named, LINES, strict=False):
            mark = {"marker": marker, "ms": 4, "markevery": max(len(x) // 12, 1)}
            axes.step(
                x,
                frame[name],
                where="post",
                color=colour,
                ls=dash,
                lw=1.7,
                label=label(name, 18),
                **mark,
            )
        axes.set_ylim(0, 1.02)
        axes.set_xlim(x.min(), x.max())
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(frame.columns) > len(named):
            axes.plot([], [], color=FAINT, lw=0.7, label="others")
        picture.legend(loc="outside right upper")
    return picture


def draw_all(
    analysis: Analysis,
    curves: pandas.DataFrame | None = None,
    weights: "Weights | None" = None,
) -> dict[str, Callable[[], Figure]]:
    """Every picture that this analysis can give: name -> a function that draws it.

    Args:
      analysis: of a table.
      curves: from `bocb_jax.coupling.curves.read`, for the training curves.
      weights: from `bocb_jax.patterns.cells.read`, for ridges, named by `ridge_names`.
    """
    table, found = analysis.table, {}
    if analysis.regret.size:
        found["heat_map"] = lambda: heat_map(analysis)
        found["regret"] = lambda: regrets(analysis)
    if analysis.decomposition is not None:
        without = analysis.decomposition_without_failures
        found["shares"] = lambda: shares(analysis.decomposition, without)
    if analysis.nemenyi is not None:
        found["critical_difference"] = lambda: critical_difference(analysis.nemenyi)
    if analysis.structure is not None:
        categories = analysis.optimizers["category"].dropna().to_dict()
        found["biplot"] = lambda: biplot(analysis.structure, categories, analysis.clusters)
    if analysis.profiles is not None:
        found["profiles"] = lambda: profiles(analysis.profiles, table.unit)
    if analysis.hyperparameters is not None:
        found["robustness"] = lambda: plots_tuning.robustness(analysis.hyperparameters)
    if analysis.budget is not None:
        found["budget"] = lambda: plots_tuning.budget(analysis.budget, table.unit)
    if table.trials is not None and plots_tuning.has_rates(table.trials):
        found["sensitivity"] = lambda: plots_tuning.sensitivity(table)
    if curves is not None and len(curves):
        found["training_curves"] = lambda: plots_tuning.training_curves(curves)
    if weights is not None:
        for backbone, metric, name in ridge_names(analysis, weights):
            found[name] = functools.partial(_ridges, analysis, weights, backbone, metric)
    return found


def ridge_names(analysis: Analysis, weights: "Weights") -> list[tuple[str, str, str]]:
    """Backbone, figure and the picture's name, for every picture of ridges."""
    drawn = set(weights.cells["backbone"])
    return [
        (backbone, metric, f"ridges_{metric}_{place}")
        for place, backbone in enumerate(analysis.table.backbones)
        for metric in ("alpha", "entropy")
        if backbone in drawn
    ]


def _ridges(analysis: Analysis, weights: "Weights", backbone: str, metric: str) -> Figure:
    layers = weights.layers[weights.layers["backbone"] == backbone]
    cells = weights.cells[weights.cells["backbone"] == backbone]
    return ridges.draw(
        layers,
        metric=metric,
        scores=analysis.table.matrix()[backbone].dropna().to_dict(),
        failed=set(cells[cells["failed"]]["optimizer"]),
        higher_is_better=analysis.table.higher_is_better,
    )


def _decimals(analysis: Analysis) -> int:
    return 1 if analysis.table.unit == "points" else 2


def _write(axes, placed, x, y, text, reach, **look) -> None:
    """Writes beside a point, on the first side where no name is yet."""
    wide, high = 0.021 * len(text) * reach, 0.05 * reach
    sides = [(6, 0, "left"), (-6, 0, "right"), (0, 9, "center"), (0, -10, "center")]
    for far in (9, 18, 27, 36, 45):
        sides += [
            (far, far, "left"),
            (far, -far, "left"),
            (-far, far, "right"),
            (-far, -far, "right"),
        ]
        sides += [(1.5 * far, far / 2, "left"), (-1.5 * far, -far / 2, "right")]

    def middle(side):
        dx, dy, align = side
        shift = {"left": wide, "right": -wide, "center": 0}[align]
        return x + 0.006 * reach * dx + shift, y + 0.0062 * reach * dy

    def is_free(side):
        a, b = middle(side)
        return all(abs(a - c) > wide + half or abs(b - d) > high for c, d, half in placed)

    dx, dy, align = side = next(filter(is_free, sides), sides[0])
    placed.append((*middle(side), wide))
    arrow = {"arrowstyle": "-", "color": FAINT, "lw": 0.4} if abs(dx) > 9 else None
    axes.annotate(
        text, (x, y), (dx, dy), textcoords="offset points", ha=align, va="center", fontsize=7.5,
        arrowprops=arrow, **look,
    )  # fmt: skip
