"""Shares of the variance of the scores: backbone, optimizer and coupling."""

from matplotlib import colors
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bocb_jax.coupling.decomposition import Decomposition
from bocb_jax.report.style import figure, house_style, ink_on, label

# term -> colour, hatch, name
_TERMS = {
    "backbone": ("#00306f", "", "backbone"),
    "optimizer": ("#7c7b78", "..", "optimizer"),
    "interaction": ("#f2d13f", "//", "coupling"),
}


def draw(full: Decomposition, without: Decomposition | None) -> Figure:
    """Draw the shares as stacked bars.

    Args:
      full: over all optimizers.
      without: the same without the optimizers that fail, a second bar if there are any.
    """
    fits = [("all optimizers", full)]
    if without is not None and without.dropped:
        fits.append((f"without {', '.join(label(name, 14) for name in without.dropped)}", without))
    with house_style():
        picture = figure(7, 0.9 + 0.6 * len(fits))
        axes = picture.subplots()
        for row, (_, fit) in enumerate(fits):
            left = 0.0
            for term, (colour, hatch, _) in _TERMS.items():
                share = float(fit.terms.loc[term, "share"])
                axes.barh(row, share, left=left, color=colour, hatch=hatch, height=0.6, linewidth=0)
                if share > 0.04:
                    axes.text(
                        left + share / 2,
                        row,
                        f"{share:.2f}",
                        ha="center",
                        va="center",
                        color=ink_on(*colors.to_rgb(colour)),
                        bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
                    )
                left += share
        names = [f"{name}\n{fit.cells} cells, {fit.runs} runs" for name, fit in fits]
        axes.set_yticks(range(len(fits)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the variance of the cell means")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        handles = [
            Patch(facecolor=colour, hatch=hatch, label=name)
            for colour, hatch, name in _TERMS.values()
        ]
        picture.legend(handles=handles, loc="outside upper right", ncols=3)
    return picture
