"""Pictures of tuning and of training: what settings cost, and how runs went."""

import numpy as np
import pandas
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bocb_jax.coupling.analysis import Budget, Hyperparameters
from bocb_jax.report.style import FAILED, FAINT, INK, LINES, figure, house_style, label
from bocb_jax.coupling.scores import ScoreTable

_BOX = {
    "patch_artist": True,
    "widths": 0.55,
    "showfliers": False,
    "medianprops": {"color": INK, "linewidth": 1.8},
    "whiskerprops": {"color": FAINT},
    "capprops": {"color": FAINT},
    "boxprops": {"facecolor": "#b9c6dd", "edgecolor": FAINT},
}


def robustness(section: Hyperparameters) -> Figure:
    """Distance of the tuned values to the usual ones: a box and the values of each group."""
    distances = section.distances
    halves = (("by backbone", distances.T), ("by optimizer", distances))
    longest = max(len(frame) for _, frame in halves)
    with house_style():
        picture = figure(9, 1.2 + 0.25 * longest)
        for axes, (title, frame) in zip(picture.subplots(1, 2), halves, strict=True):
            frame = frame.dropna(how="all")
            order = frame.median(axis=1).sort_values(kind="stable").index
            values = [frame.loc[name].dropna().to_numpy(float) for name in order]
            rows = range(len(order))
            if values:
                axes.boxplot(values, positions=list(rows), orientation="horizontal", **_BOX)
            for row, group in enumerate(values):
                # Equal values side by side, so that none hides another.
                height = np.zeros(len(group))
                for value in np.unique(group):
                    same = group == value
                    height[same] = np.linspace(-0.3, 0.3, same.sum() + 2)[1:-1]
                axes.plot(group, row + height, "o", ms=2.2, color="#0b3c7d", alpha=0.75)
            names = [f"{label(n, 18)}  n={len(v)}" for n, v in zip(order, values, strict=True)]
            axes.set_yticks(list(rows), names)
            axes.invert_yaxis()
            axes.set_xlim(-0.3, max([1, *(group.max() for group in values)]) + 0.3)
            axes.set_title(title)
            axes.set_xlabel("steps of lr + weight decay from the usual")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
    return picture


def budget(section: Budget, unit: str) -> Figure:
    """Expected best score, and coupling, against the number of trials."""
    with house_style():
        picture = figure(9, 3.6)
        left, right = picture.subplots(1, 2)
        curves = section.curves
        mean = (
            curves.groupby(["optimizer", "trials"], sort=False)["expected_best"].mean().unstack(0)
        )
        mean = mean.sort_index()
        named = list(mean.iloc[-1].sort_values(ascending=False, kind="stable").index[: len(LINES)])
        for name in mean.columns:
            if name not in named:
                left.plot(mean.index, mean[name], color=FAINT, lw=0.7, alpha=0.6)
        for name, (colour, dash, marker) in zip(named, LINES, strict=False):
            look = {"color": colour, "ls": dash, "marker": marker, "ms": 3.5}
            left.plot(mean.index, mean[name], label=label(name, 16), **look)
        left.set_xlabel("trials of learning rate and weight decay")
        left.set_ylabel(f"expected best, mean over backbones, {unit}")
        backbones = curves["backbone"].nunique()
        left.set_title(f"score, {backbones} backbone{'s' * (backbones != 1)}")
        left.legend(fontsize=7)
        left.xaxis.get_major_locator().set_params(integer=True)
        if section.coupling.empty:  # too few pairs have trials for an additive fit
            right.remove()
            return picture
        coupling = section.coupling.sort_index()
        right.plot(
            coupling.index, coupling["interaction_std"], "o-", color="#0b3c7d", label="coupling"
        )
        right.plot(
            coupling.index, coupling["mean_regret"], "s--", color="#b58900", label="mean regret"
        )
        right.set_ylim(bottom=0)
        right.set_xlabel("trials of learning rate and weight decay")
        right.set_ylabel(unit)
        cells = int(coupling["cells"].max())
        right.set_title(f"what is left between pairs, {cells} cells")
        right.legend()
        right.xaxis.get_major_locator().set_params(integer=True)
    return picture


def has_rates(trials: pandas.DataFrame) -> bool:
    """Whether some pair was tried at two learning rates or more."""
    if "learning_rate" not in trials or trials["learning_rate"].isna().all():
        return False
    return bool((trials.groupby(["backbone", "optimizer"])["learning_rate"].nunique() > 1).any())


def sensitivity(table: ScoreTable) -> Figure:
    """Score against learning rate, a panel an optimizer: how wide is the good region?

    A thin line is a backbone: the best over weight decays, as distance to the best of its pair.
    The thick line is the median. Crosses at the lower edge are failed runs.
    """
    trials = table.trials
    sign = 1 if table.higher_is_better else -1
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
            scored = mine[mine["status"] == "finished"].dropna(subset=["score", "learning_rate"])
            gaps = []
            for _, pair in scored.groupby("backbone", sort=False):
                best = sign * pair.groupby("learning_rate")["score"].agg(
                    "max" if sign > 0 else "min"
                )
                gaps.append(best - best.max())
                axes.plot(gaps[-1].index, gaps[-1], color=FAINT, lw=0.7, alpha=0.8)
            if gaps:
                median = pandas.concat(gaps, axis=1).median(axis=1)
                axes.plot(median.index, median, "o-", color="#0b3c7d", lw=1.8, ms=3.5)
            failed = mine[mine["status"] != "finished"]["learning_rate"].dropna()
            floor = -10 if table.unit == "points" else min([g.min() for g in gaps] + [-1e-3])
            axes.set_ylim(floor * 1.06, -floor * 0.05)
            axes.plot(failed, [floor] * len(failed), "x", color=FAILED, ms=5)
            if (mine["learning_rate"].dropna() > 0).all():
                axes.set_xscale("log")
                axes.minorticks_off()
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_title(f"{label(name, 16)}  n={len(mine)}", fontsize=8.5)
        for axes in panels[len(optimizers) :]:
            axes.set_axis_off()
        picture.supxlabel("learning rate", fontsize=9)
        picture.supylabel(f"distance to the best of the pair, {table.unit}", fontsize=9)
    return picture


def training_curves(curves: pandas.DataFrame, *, most: int = 12) -> Figure:
    """Validation accuracy (where it was measured, else training loss) against epochs.

    Args:
      curves: columns backbone, optimizer, epoch, loss, accuracy (percent), failed; one run a pair.
      most: panels, one a backbone; the first so many.
    """
    backbones = list(pandas.unique(curves["backbone"]))[:most]
    measure = "accuracy" if curves["accuracy"].notna().any() else "loss"
    last = curves.sort_values("epoch").groupby("optimizer")[measure].last()
    ranked = last.sort_values(ascending=measure == "loss", kind="stable").index
    named = dict(zip(ranked, LINES, strict=False))
    across = min(3, len(backbones))
    down = -(-len(backbones) // across)
    with house_style():
        picture = figure(3.1 * across + 1.2, 0.5 + 2.3 * down)
        panels = picture.subplots(down, across, squeeze=False).ravel()
        handles = {}
        for axes, backbone in zip(panels, backbones, strict=False):
            mine = curves[curves["backbone"] == backbone].dropna(subset=[measure])
            for name, run in mine.groupby("optimizer", sort=False):
                if bool(run["failed"].any()):
                    look = {"color": FAILED, "ls": ":", "lw": 1.1}
                elif name in named:
                    colour, dash, _ = named[name]
                    look = {"color": colour, "ls": dash, "lw": 1.5}
                else:
                    look = {"color": FAINT, "ls": "-", "lw": 0.7, "alpha": 0.6}
                (line,) = axes.plot(run["epoch"], run[measure], **look)
                if name in named and not bool(run["failed"].any()):
                    handles.setdefault(label(name, 16), line)
            axes.set_title(label(backbone, 22), fontsize=9)
        for axes in panels[len(backbones) :]:
            axes.set_axis_off()
        picture.supxlabel("epoch", fontsize=9)
        picture.supylabel(
            "validation accuracy, %" if measure == "accuracy" else "training loss, nats", fontsize=9
        )
        if handles:
            picture.legend(handles.values(), handles.keys(), loc="outside right upper")
    return picture
