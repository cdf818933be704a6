"""Ridges of a figure over the layers, one an optimizer, from the best score to the worst."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas
from matplotlib.figure import Figure

from bocb_jax.coupling.patterns import THRESHOLDS
from bocb_jax.errors import UserError

# Dark to light, so that the order stays in grey; the ends of a map made for all kinds of sight.
_FIRST, _LAST, _FAILED = np.array([0.0, 0.13, 0.30]), np.array([0.86, 0.72, 0.30]), "0.75"


def plot(
    frame: pandas.DataFrame,
    path: str | Path,
    *,
    metric: str = "alpha",
    scores: Mapping[str, float] | None = None,
    failed: Collection[str] = (),
) -> None:
    """Draws a figure's ridges into an image file.

    Args:
      frame: of `analyze_checkpoints`, of one backbone or of files with the same layers.
      path: its suffix decides the format.
      metric: a column, such as "alpha" or "entropy".
      scores: by optimizer, higher is better; those without one come last.
      failed: optimizers that are drawn in grey.

    Raises:
      UserError: the layers are those of several backbones, or the file cannot be written.
    """
    if frame["backbone"].nunique() > 1:
        raise UserError(
            "A ridge plot is of one backbone, and these weights are of "
            f"{', '.join(sorted(frame['backbone'].dropna().unique()))}; give the runs of one."
        )
    names = frame["optimizer"].fillna(frame["source"].map(lambda source: Path(source).name))
    curves = frame.groupby([names.rename("name"), "depth"])[metric].mean().unstack()
    reference = frame.groupby("depth")[f"{metric}_init"].mean()
    scores = scores or {}
    order = sorted(curves.index, key=lambda name: (-scores.get(name, -np.inf), name))
    rows = [(name, curves.loc[name]) for name in order] + [("random initialization", reference)]
    top = np.nanquantile(np.concatenate([curve.to_numpy(float) for _, curve in rows]), 0.98)
    limit = max(float(top), 1.3 * THRESHOLDS[1] if metric == "alpha" else 0) or 1.0
    figure = Figure(figsize=(9, 0.55 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots(len(rows), sharex=True, squeeze=False)[:, 0]
    for place, (axis, (name, curve)) in enumerate(zip(axes, rows, strict=True)):
        share = place / max(len(rows) - 2, 1)
        color = tuple(np.clip(_FIRST + share * (_LAST - _FIRST), 0, 1))
        if name in failed:
            color = _FAILED
        if place == len(rows) - 1:
            axis.plot(curve.index, curve, color="black", linewidth=1, linestyle="--")
        else:
            axis.fill_between(curve.index, 0, curve, color=color, alpha=0.75, linewidth=0)
            axis.plot(curve.index, curve, color=color, linewidth=1)
        if metric == "alpha":
            for threshold in THRESHOLDS:
                axis.axhline(threshold, color="0.3", linewidth=0.5, linestyle=":")
        axis.set_ylim(0, limit)
        axis.spines[["top", "right"]].set_visible(False)
        score = f"  {scores[name]:.1f}" if name in scores else ""
        axis.set_ylabel(f"{name}{score}", rotation=0, ha="right", va="center", fontsize=8)
        axis.tick_params(labelsize=6)
    axes[-1].set_xlabel("layer, from the image to the classes", fontsize=8)
    dotted = "; dotted: 2 and 6" if metric == "alpha" else ""
    figure.suptitle(f"{metric} over the layers{dotted}", fontsize=9)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be drawn: {error}.") from error
