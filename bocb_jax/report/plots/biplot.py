"""Biplot of the coupling: backbones and optimizers on its first two principal axes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from bocb_jax.coupling.structure import Clusters, Structure
from bocb_jax.report.style import CATEGORIES, FAINT, figure, house_style, label

_Points = list[tuple[str, tuple[float, float]]]
_Place = tuple[float, float, str]  # offset of a name from its point, in points; alignment


def draw(
    structure: Structure, categories: Mapping[str, str], clusters: Clusters | None = None
) -> Figure:
    """Draw backbones (tips of lines) and optimizers (markers) on the first two axes.

    A backbone scores more than the additive fit predicts with the optimizers in its direction, and
    less with those on the other side.

    Args:
      structure: principal axes of the coupling.
      categories: optimizer -> category, which decides the marker.
      clusters: of the backbones; their numbers are written behind the names.
    """
    markers, tips = _points(structure.optimizers), _points(structure.backbones)
    keys = {name: _category(categories.get(name)) for name, _ in markers}
    texts = {name: label(name, 14) for name, _ in tips}
    if clusters is not None and clusters.number > 1:
        texts = {name: f"{text} ({clusters.labels[name]})" for name, text in texts.items()}
    distances = {name: float(np.hypot(x, y)) for name, (x, y) in markers + tips}
    far = max(distances.values(), default=0.0)
    usual = float(np.median([*distances.values()] or [0]))
    # Half widths of the panels, and the distance up to which points stay without a name. A few
    # points far out would squeeze all others together, which then get a panel of their own.
    views = [(far or 1.0, 0.0)]
    if far > 4 * usual > 0:
        window = 2.2 * usual
        views = [(far, window), (window, 0.0)]
    with house_style():
        picture = figure(6.4 if len(views) == 1 else 10.5, 6.2)
        panels = picture.subplots(1, len(views), squeeze=False).ravel()
        for axes, (reach, inner) in zip(panels, views, strict=True):
            named = {name for name, distance in distances.items() if distance > inner}
            _panel(axes, markers, keys, tips, texts, named, reach)
        if len(views) > 1:
            box = Rectangle((-window, -window), 2 * window, 2 * window)
            box.set(fill=False, linestyle=":", edgecolor=FAINT)
            panels[0].add_patch(box)
            panels[1].set_title("the dotted square, enlarged", fontsize=8)
        shares = [f"{100 * value:.0f} %" for value in structure.shares.iloc[:2]] + ["0 %"]
        picture.supxlabel(f"axis 1: {shares[0]} of the coupling", fontsize=9)
        picture.supylabel(f"axis 2: {shares[1]} of the coupling", fontsize=9)
        handles = [
            Line2D(
                [], [], ls="", marker=marker, color=colour, label=f"{key}: {text}" if key else text
            )
            for key, (colour, marker, text) in CATEGORIES.items()
            if key in keys.values()
        ]
        handles.append(Line2D([], [], color=FAINT, lw=0.8, label="backbone (italic)"))
        picture.legend(handles=handles, loc="outside upper left", ncols=3)
    return picture


def _points(frame: pandas.DataFrame) -> _Points:
    return list(zip(frame.index, frame.iloc[:, :2].to_numpy(float).tolist(), strict=True))


def _from_far(points: _Points) -> _Points:
    """Return points from the furthest out to the nearest: the former need their names most."""
    return sorted(points, key=lambda point: -float(np.hypot(*point[1])))


def _category(key: str | None) -> str:
    return key if key in CATEGORIES else ""


def _panel(
    axes: Axes,
    markers: _Points,
    keys: Mapping[str, str],
    tips: _Points,
    texts: Mapping[str, str],
    named: set[str],
    reach: float,
) -> None:
    """Draw one panel from -reach to reach on both axes; only `named` points get their names."""
    axes.axhline(0, color=FAINT, lw=0.6)
    axes.axvline(0, color=FAINT, lw=0.6)
    placed: list[tuple[float, float, float]] = []
    for name, (x, y) in _from_far(markers):
        colour, marker, _ = CATEGORIES[keys[name]]
        axes.plot(x, y, marker, color=colour, ms=6, mec=FAINT, mew=0.4, clip_on=True)
        if name in named and max(abs(x), abs(y)) <= reach:
            _write(axes, placed, x, y, label(name, 14), reach, fontweight="bold")
    for name, (x, y) in _from_far(tips):
        axes.plot([0, x], [0, y], color=FAINT, lw=0.8)
        if name in named and max(abs(x), abs(y)) <= reach:
            _write(axes, placed, x, y, texts[name], reach, style="italic")
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlim(-1.12 * reach, 1.12 * reach)
    axes.set_ylim(-1.12 * reach, 1.12 * reach)


def _write(
    axes: Axes,
    placed: list[tuple[float, float, float]],
    x: float,
    y: float,
    text: str,
    reach: float,
    **look: Any,
) -> None:
    """Write a name beside its point, in the first place that overlaps no earlier name, if any.

    Args:
      axes: of the panel.
      placed: middle and half width of the names so far; this one is appended.
      x, y: the point.
      text: the name.
      reach: half width of the panel.
      look: properties of the text.
    """
    half_width, height = 0.021 * len(text) * reach, 0.05 * reach
    places: list[_Place] = [(6, 0, "left"), (-6, 0, "right"), (0, 9, "center"), (0, -10, "center")]
    for far in (9, 18, 27, 36, 45):
        places += [
            (far, far, "left"),
            (far, -far, "left"),
            (-far, far, "right"),
            (-far, -far, "right"),
        ]
        places += [(1.5 * far, far / 2, "left"), (-1.5 * far, -far / 2, "right")]

    def middle(place: _Place) -> tuple[float, float]:
        dx, dy, align = place
        shift = {"left": half_width, "right": -half_width, "center": 0}[align]
        return x + 0.006 * reach * dx + shift, y + 0.0062 * reach * dy

    def is_free(place: _Place) -> bool:
        a, b = middle(place)
        return all(abs(a - c) > half_width + other or abs(b - d) > height for c, d, other in placed)

    place = next(filter(is_free, places), None)
    if place is None:
        return
    dx, dy, align = place
    placed.append((*middle(place), half_width))
    arrow = {"arrowstyle": "-", "color": FAINT, "lw": 0.4} if abs(dx) > 9 else None
    axes.annotate(
        text, (x, y), (dx, dy), textcoords="offset points", ha=align, va="center", fontsize=7.5,
        arrowprops=arrow, **look,
    )  # fmt: skip
