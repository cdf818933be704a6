"""Ridge plot of a metric over the layers: a ridge per optimizer, best score first."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bocb_jax.coupling.rounding import significant
from bocb_jax.errors import UserError
from bocb_jax.patterns.spectra import ALPHA_THRESHOLDS, COMPONENTS
from bocb_jax.report.style import FAILED, FAINT, INK, colour_steps, figure, house_style, label, save

_TITLES = {
    "alpha": "Exponent alpha of the tail of the eigenvalues",
    "entropy": "Entropy of the weights, nats",
    "l2_norm": "Norm of the weights",
    "pca_ratio": f"Share of the variance in the first {COMPONENTS} principal components",
    "stable_rank": "Stable rank",
}
_ROW = 0.42  # inches per ridge
_SHOWN = 0.98  # share of the values that the height of a ridge covers; higher ones are cut


def draw(
    frame: pandas.DataFrame,
    *,
    metric: str = "alpha",
    scores: Mapping[str, float] | None = None,
    failed: Collection[str] = (),
    higher_is_better: bool = True,
) -> Figure:
    """Draw the ridges of one metric of one backbone.

    Args:
      frame: from `analyze_checkpoints`, of one backbone or of files with the same layers; runs of
        the same optimizer are averaged.
      metric: a column, such as "alpha" or "entropy".
      scores: by optimizer; optimizers without a score come last.
      failed: optimizers to draw in grey.
      higher_is_better: whether a high score is a good one.
    """
    scores, sign = scores or {}, 1 if higher_is_better else -1
    names = _names(frame).rename("name")
    ridges = frame.groupby([names, "depth"])[metric].mean().unstack()
    reference = frame.groupby("depth")[f"{metric}_init"].mean().reindex(ridges.columns)
    order = sorted(ridges.index, key=lambda name: (-sign * scores.get(name, -sign * np.inf), name))
    low, top = _range(np.append(ridges.to_numpy(float), reference.to_numpy(float)), metric)
    height = top - low
    bases = -1.15 * height * np.arange(len(order) + 1)
    start = np.clip(reference.to_numpy(float), low, top) - low
    # The end of the scale is left out where it nears the grey of failed optimizers.
    colours = colour_steps("viridis", max(len(order), 2), 0.0, 0.93)
    with house_style():
        picture = figure(7.4, _ROW * len(bases) + 1.0)
        axes = picture.subplots()
        x = ridges.columns.to_numpy(float)
        for base, name, colour in zip(bases, order, colours, strict=False):
            look: dict[str, Any] = {"facecolor": colour, "alpha": 0.85}
            if name in failed:
                look = {"facecolor": FAILED, "hatch": "////", "alpha": 0.55}
            _ridge(axes, x, ridges.loc[name].to_numpy(float) - low, base, height, look)
            axes.plot(x, base + start, color=INK, lw=0.6, ls=(0, (2, 2)))
            score = f"{scores[name]:.1f}" if np.isfinite(scores.get(name, np.nan)) else ""
            text = " ".join(filter(None, [score, "failed" if name in failed else ""]))
            _write_beside(axes, base + 0.3 * height, text)
        axes.plot(x, bases[-1] + start, color=INK, lw=1, ls="--")
        axes.axhline(bases[-1], color=FAINT, lw=0.5)
        legend = "dashed: initialization"
        if metric == "alpha":
            for threshold in ALPHA_THRESHOLDS:
                axes.hlines(bases + threshold - low, x[0], x[-1], color=FAINT, lw=0.6, ls=":")
            legend += "; dotted: alpha {:g} and {:g}".format(*ALPHA_THRESHOLDS)
        names = [*(label(n, 24) for n in order), "initialization"]
        axes.set_yticks(bases + 0.3 * height, names)
        axes.set_ylim(bases[-1] - 0.08 * height, 1.2 * height)
        axes.set_xlim(x[0] - 0.01 * len(x), x[-1] + 0.01 * len(x))
        axes.set_xlabel(
            "layer, from the input to the output\n"
            f"a row spans {significant(low)} to {significant(top)}, "
            f"triangles: above that; {legend}",
            fontsize=8,
        )
        axes.set_title(_TITLES.get(metric, metric), fontsize=9)
        _style_axes(axes)
        if any(np.isfinite(scores.get(name, np.nan)) for name in order):
            _write_beside(axes, 1.08 * height, "score")
    return picture


def _style_axes(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines["left"].set_visible(False)


def write(
    frame: pandas.DataFrame,
    path: str | Path,
    *,
    metric: str = "alpha",
    scores: Mapping[str, float] | None = None,
    failed: Collection[str] | None = None,
) -> None:
    """Draw the ridges of one metric into an image file.

    Args:
      frame, metric: as for `draw`.
      path: of the file; its suffix decides the format.
      scores, failed: as for `draw`; None: as the runs recorded them.

    Raises:
      UserError: the layers are those of several backbones, or the file cannot be written.
    """
    if frame["backbone"].nunique() > 1:
        raise UserError(
            "A ridge plot shows one backbone, and these weights are of "
            f"{', '.join(sorted(frame['backbone'].dropna().unique()))}; give the runs of one."
        )
    runs = frame.groupby(_names(frame))
    if scores is None:
        scores = runs["score"].mean().dropna().to_dict() if "score" in frame else {}
    if failed is None:
        failed = [str(n) for n, part in runs if "failed" in part and part["failed"].eq(True).all()]
    picture = draw(frame, metric=metric, scores=scores, failed=failed)
    try:
        save(picture, Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be drawn: {error}.") from error


def _names(frame: pandas.DataFrame) -> pandas.Series:
    """The optimizer of each row; the name of the file where it is not known."""
    files = frame["source"].map(lambda source: Path(source).name)
    return frame["optimizer"].astype(object).where(frame["optimizer"].notna(), files)


def _range(values: np.ndarray, metric: str) -> tuple[float, float]:
    """Return the values that a row spans, in which outliers at the top are cut off."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, top = float(values.min()), float(np.quantile(values, _SHOWN))
    if metric == "alpha":
        # How far above the thresholds a few layers are says nothing more.
        return 0.0, min(max(top, 1.15 * ALPHA_THRESHOLDS[1]), 2 * ALPHA_THRESHOLDS[1])
    # From zero, unless all values are far from it.
    low = 0.0 if low < top / 2 else low - 0.1 * (top - low)
    return (low, top) if top > low else (low, low + 1)


def _ridge(
    axes: Axes,
    x: np.ndarray,
    values: np.ndarray,
    base: float,
    height: float,
    look: Mapping[str, Any],
) -> None:
    """Draw one ridge.

    Args:
      axes: of the picture.
      x: depth of the layers.
      values: their heights above `base`; NaN where there is none.
      base: y of the row.
      height: of the row; higher values are cut and marked.
      look: properties of the area.
    """
    known = np.isfinite(values)
    shown = base + np.minimum(values, height)
    axes.fill_between(x, base, shown, where=known, linewidth=0, **look)
    axes.plot(x, np.where(known, shown, np.nan), color=INK, lw=0.6)
    axes.axhline(base, color=FAINT, lw=0.5)
    cut = known & (values > height)
    axes.plot(x[cut], shown[cut], "^", color=INK, ms=2.5)
    # A value between two missing ones spans no area, so it gets a line.
    padded = np.pad(known, 1)
    alone = known & ~padded[:-2] & ~padded[2:]
    axes.vlines(x[alone], base, shown[alone], color=look["facecolor"], lw=2)


def _write_beside(axes: Axes, y: float, text: str) -> None:
    """Write to the right of the axes."""
    axes.annotate(
        text, (1, y), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        fontsize=7.5, va="center",
    )  # fmt: skip
