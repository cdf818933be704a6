"""The heat map of scores with their marks."""

import numpy as np
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bocb_jax.coupling.result import Analysis
from bocb_jax.report.heat_map_data import row_and_column_order, score_format
from bocb_jax.report.style import (
    FAILED,
    FAINT,
    MARK_SIGNS,
    ONE_SEED_SIGN,
    figure,
    house_style,
    ink_on,
    label,
)

_COLOURS = "cividis_r"


def draw(analysis: Analysis, *, deepest: float = 10.0) -> Figure:
    """Draw scores with their marks; the colour is the distance to the best of the column.

    Optimizers are sorted by mean regret, backbones by cluster if there are clusters. Cells whose
    runs all failed are grey and hatched.

    Args:
      analysis: of any table.
      deepest: distance at which the colour scale ends, in points; the largest distance if the
        scores have another unit.
    """
    rows, columns = row_and_column_order(analysis)
    regret = analysis.regret.reindex(index=rows, columns=columns)
    if analysis.table.unit != "points":
        deepest = float(np.nanmax(regret.to_numpy(), initial=0)) or 1.0
    scale = colors.Normalize(0, deepest)
    width, height = 1.6 + 0.52 * len(columns), 1.7 + 0.27 * len(rows)
    with house_style():
        picture = figure(max(width, 5), height)
        axes = picture.subplots()
        image = axes.imshow(
            regret.to_numpy(float), cmap=_COLOURS, norm=scale, aspect="auto", zorder=0
        )
        _write_cells(axes, analysis, rows, columns, scale)
        names = [label(c, 16) for c in columns]
        axes.set_xticks(range(len(columns)), names, rotation=45, ha="left")
        axes.set_yticks(range(len(rows)), [label(r, 16) for r in rows])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = picture.colorbar(image, ax=axes, shrink=0.6, pad=0.01, extend="max")
        bar.set_label(f"behind the best of the column, {analysis.table.unit}")
        bar.outline.set_visible(False)
        note = f"★ best   ▲ top 4   ▼ outlier by {analysis.outliers.rule}   grey: every run failed"
        note += "   one score per cell" if analysis.table.one_seed else "   ° one seed"
        axes.set_xlabel(note, fontsize=7.5, loc="left")
    return picture


def _write_cells(
    axes: Axes,
    analysis: Analysis,
    rows: list[str],
    columns: list[str],
    scale: colors.Normalize,
) -> None:
    """Write score and mark into every cell, and hatch the failed ones."""
    table = analysis.table
    regret = analysis.regret.reindex(index=rows, columns=columns)
    scores = table.measured().reindex(index=rows, columns=columns)
    failed = table.failed().reindex(index=rows, columns=columns)
    one_seed = table.counts().reindex(index=rows, columns=columns) == 1
    marks = analysis.outliers.labels.reindex(index=rows, columns=columns)
    spec = score_format(table)
    for (row, column), value in np.ndenumerate(scores.to_numpy(float)):
        if failed.iat[row, column]:
            corner = column - 0.5, row - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=FAILED, hatch="////", linewidth=0))
        if not np.isfinite(value):
            axes.text(column, row, "·", ha="center", va="center", color=FAINT)
            continue
        background = colormaps[_COLOURS](scale(regret.iat[row, column]))[:3]
        sign = MARK_SIGNS[marks.iat[row, column]]
        # Where every cell has one seed, the note under the picture says so once.
        single = ONE_SEED_SIGN if one_seed.iat[row, column] and not table.one_seed else ""
        axes.text(
            column,
            row,
            f"{sign}{value:{spec}}{single}",
            ha="center",
            va="center",
            fontsize=6.8,
            fontweight="bold" if marks.iat[row, column] in ("best", "top4") else "normal",
            color=ink_on(*background),
            in_layout=False,
        )
