"""Score or loss against epochs, a panel for each backbone."""

from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bocb_jax.report.style import FAILED, FAINT, LINES, figure, house_style, label


def draw(curves: pandas.DataFrame, *, most: int = 12) -> Figure:
    """Draw validation accuracy, or training loss where it was not measured, against epochs.

    Args:
      curves: columns backbone, optimizer, epoch, loss, accuracy (percent), failed; one run per
        pair.
      most: number of panels; further backbones are left out.
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
        handles: dict[str, Any] = {}
        for axes, backbone in zip(panels, backbones, strict=False):
            mine = curves[curves["backbone"] == backbone].dropna(subset=[measure])
            for name, line in _lines(axes, mine, measure, named).items():
                handles.setdefault(name, line)
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


def _lines(
    axes: Axes, curves: pandas.DataFrame, measure: str, named: dict[str, tuple]
) -> dict[str, Any]:
    """Draw a line per optimizer, and return those for the legend by their label."""
    handles = {}
    for name, run in curves.groupby("optimizer", sort=False):
        failed = bool(run["failed"].any())
        look: dict[str, Any]
        if failed:
            look = {"color": FAILED, "ls": ":", "lw": 1.1}
        elif name in named:
            colour, dash, _ = named[name]
            look = {"color": colour, "ls": dash, "lw": 1.5}
        else:
            look = {"color": FAINT, "ls": "-", "lw": 0.7, "alpha": 0.6}
        (line,) = axes.plot(run["epoch"], run[measure], **look)
        if name in named and not failed:
            handles[label(name, 16)] = line
    return handles
