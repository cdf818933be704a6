"""Ridges of a figure over the layers, one an optimizer, from the best score to the worst."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bocb_jax.patterns.spectra import THRESHOLDS
from bocb_jax.report.style import FAILED, FAINT, INK, colour_steps, figure, house_style, label
from bocb_jax.report.style import save as save_picture
from bocb_jax.errors import UserError

TITLES = {
    "alpha": "Exponent alpha of the tail of the eigenvalues",
    "entropy": "Entropy of the weights, nats",
    "l2_norm": "Norm of the weights",
    "pca_ratio": "Share of the variance in the first 10 principal components",
    "stable_rank": "Stable rank",
}
_ROW = 0.42  # inches a ridge
_SHOWN = 0.98  # share of the values that the height shows; higher ones are cut, and marked


def draw(
    frame: pandas.DataFrame,
    *,
    metric: str = "alpha",
    scores: Mapping[str, float] | None = None,
    failed: Collection[str] = (),
    higher_is_better: bool = True,
) -> Figure:
    """The ridges of a figure of one backbone.

    Args:
      frame: of `analyze_checkpoints`, of one backbone or of files with the same layers; runs of one
        optimizer are averaged.
      metric: a column, such as "alpha" or "entropy".
      scores: by optimizer; those without one come last.
      failed: optimizers that are drawn in grey.
      higher_is_better: whether that is so of the scores.
    """
    scores, sign = scores or {}, 1 if higher_is_better else -1
    names = _names(frame)
    curves = frame.groupby([names.rename("name"), "depth"])[metric].mean().unstack()
    reference = frame.groupby("depth")[f"{metric}_init"].mean().reindex(curves.columns)
    order = sorted(curves.index, key=lambda name: (-sign * scores.get(name, -sign * np.inf), name))
    low, top = _range(np.append(curves.to_numpy(float), reference.to_numpy(float)), metric)
    height = top - low
    bases = -1.15 * height * np.arange(len(order) + 1)
    start = np.clip(reference.to_numpy(float), low, top) - low
    # Not through grey, which is for those that failed.
    colours = colour_steps("viridis", max(len(order), 2), 0.0, 0.93)
    with house_style():
        picture = figure(7.4, _ROW * len(bases) + 1.0)
        axes = picture.subplots()
        x = curves.columns.to_numpy(float)
        for base, name, colour in zip(bases, order, colours, strict=False):
            look = {"facecolor": colour, "alpha": 0.85}
            if name in failed:
                look = {"facecolor": FAILED, "hatch": "////", "alpha": 0.55}
            _ridge(axes, x, curves.loc[name].to_numpy(float) - low, base, height, look)
            axes.plot(x, base + start, color=INK, lw=0.6, ls=(0, (2, 2)))
            score = f"{scores[name]:.1f}" if np.isfinite(scores.get(name, np.nan)) else ""
            words = " ".join(filter(None, [score, "failed" if name in failed else ""]))
            _beside(axes, base + 0.3 * height, words)
        axes.plot(x, bases[-1] + start, color=INK, lw=1, ls="--")
        axes.axhline(bases[-1], color=FAINT, lw=0.5)
        legend = "dashed: random start"
        if metric == "alpha":
            for threshold in THRESHOLDS:
                axes.hlines(bases + threshold - low, x[0], x[-1], color=FAINT, lw=0.6, ls=":")
            legend += "; dotted: alpha 2 and 6"
        axes.set_yticks(bases + 0.3 * height, [*(label(n, 24) for n in order), "random start"])
        axes.set_ylim(bases[-1] - 0.08 * height, 1.2 * height)
        axes.set_xlim(x[0] - 0.01 * len(x), x[-1] + 0.01 * len(x))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(
            "layer, from the image to the classes\n"
            f"a row spans {low:.3g} to {top:.3g}, triangles: above that; {legend}",
            fontsize=8,
        )
        axes.set_title(TITLES.get(metric, metric), fontsize=9)
        if any(np.isfinite(scores.get(name, np.nan)) for name in order):
            _beside(axes, 1.08 * height, "score")
    return picture


def plot(
    frame: pandas.DataFrame,
    path: str | Path,
    *,
    metric: str = "alpha",
    scores: Mapping[str, float] | None = None,
    failed: Collection[str] | None = None,
) -> None:
    """Draws a figure's ridges into an image file.

    Args:
      frame, metric: as for `draw`.
      path: its suffix decides the format.
      scores, failed: as for `draw`; None: what the records of the runs say.

    Raises:
      UserError: the layers are those of several backbones, or the file cannot be written.
    """
    if frame["backbone"].nunique() > 1:
        raise UserError(
            "A ridge plot is of one backbone, and these weights are of "
            f"{', '.join(sorted(frame['backbone'].dropna().unique()))}; give the runs of one."
        )
    known = frame.groupby(_names(frame))
    if scores is None:
        scores = known["score"].mean().dropna().to_dict() if "score" in frame else {}
    if failed is None:
        failed = [n for n, part in known if "failed" in part and part["failed"].eq(True).all()]
    picture = draw(frame, metric=metric, scores=scores, failed=failed)
    try:
        save_picture(picture, Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be drawn: {error}.") from error


def _names(frame: pandas.DataFrame) -> pandas.Series:
    files = frame["source"].map(lambda source: Path(source).name)
    return frame["optimizer"].astype(object).where(frame["optimizer"].notna(), files)


def _range(values: np.ndarray, metric: str) -> tuple[float, float]:
    """What a row shows: from 0, or from the least where all are far from it, to nearly the most."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, top = float(values.min()), float(np.quantile(values, _SHOWN))
    if metric == "alpha":
        # A layer or two far above say no more than that they are above.
        return 0.0, min(max(top, 1.15 * THRESHOLDS[1]), 2 * THRESHOLDS[1])
    low = 0.0 if low < top / 2 else low - 0.1 * (top - low)
    return (low, top) if top > low else (low, low + 1)


def _ridge(axes, x, ridge, base, height, look) -> None:
    known = np.isfinite(ridge)
    shown = base + np.minimum(ridge, height)
    axes.fill_between(x, base, shown, where=known, linewidth=0, **look)
    axes.plot(x, np.where(known, shown, np.nan), color=INK, lw=0.6)
    axes.axhline(base, color=FAINT, lw=0.5)
    # Cut at the top; and layers with a figure between two without one, which span no area.
    cut = known & (ridge > height)
    axes.plot(x[cut], shown[cut], "^", color=INK, ms=2.5)
    beside = np.pad(known, 1)
    alone = known & ~beside[:-2] & ~beside[2:]
    axes.vlines(x[alone], base, shown[alone], color=look["facecolor"], lw=2)


def _beside(axes, y: float, words: str) -> None:
    axes.annotate(
        words, (1, y), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        fontsize=7.5, va="center",
    )  # fmt: skip
