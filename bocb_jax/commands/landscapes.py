"""The picture of `bocb optimizers --plot`: paths of optimizers over toy landscapes."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bocb_jax.errors import UserError
from bocb_jax.optim import list_optimizers, optimizer_info
from bocb_jax.optim.landscapes import LANDSCAPES, RATES, paths
from bocb_jax.optim.registry import CATEGORIES

COLORS = {category: f"C{i}" for i, category in enumerate(CATEGORIES)}  # matplotlib's cycle


def plot(
    path: str | pathlib.Path,
    names: Iterable[str] | None = None,
    steps: int = 120,
    track: Callable[[list[str]], Iterable[str]] = iter,
) -> None:
    """Draw the paths of optimizers into an image file.

    Args:
      path: its suffix decides the format.
      names: optimizers, sorted by category in the picture; None for all.
      steps: updates of a path.
      track: wraps the iteration over the names, to show progress.

    Raises:
      UserError: matplotlib is not installed, or cannot write this kind of file there.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ModuleNotFoundError as error:
        raise UserError("The picture needs matplotlib: pip install matplotlib.") from error
    path = pathlib.Path(path)
    figure = Figure()
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known or not path.parent.is_dir():
        raise UserError(
            f"{path} cannot be drawn: its folder must exist and its suffix be one of "
            f"{', '.join(sorted(known))}."
        )
    names = list_optimizers() if names is None else names
    categories = {name: optimizer_info(name).category for name in names}
    names = sorted(categories, key=lambda name: (list(COLORS).index(categories[name]), name))
    across = min(4, len(names))
    down = -(-len(names) // across)
    shown = [category for category in COLORS if category in categories.values()]
    columns = 3 if across > 2 else 1
    header = 0.55 + 0.17 * -(-len(shown) // columns)
    width, height = across * (len(LANDSCAPES) * 1.3 + 0.25), down * 1.55 + header
    figure.set_size_inches(width, height)
    cells = figure.add_gridspec(
        down, across, left=0.006, right=0.994, bottom=0.005, top=1 - header / height,
        wspace=0.06, hspace=0.2,
    )  # fmt: skip
    for number, name in enumerate(track(names)):
        axes = cells[number].subgridspec(1, len(LANDSCAPES), wspace=0.03).subplots(squeeze=False)[0]
        color = COLORS[categories[name]]
        for axis, (landscape, (rate, points)) in zip(axes, paths(name, steps).items(), strict=True):
            _draw(axis, landscape, points, rate, color)
        axes[0].set_title(name, fontsize=9, loc="left", pad=3, color=color, fontweight="bold")

    figure.legend(
        [Line2D([], [], color=COLORS[category], linewidth=3) for category in shown],
        [f"{category}: {CATEGORIES[category]}" for category in shown],
        loc="upper left", ncols=columns, fontsize=8, frameon=False,
    )  # fmt: skip
    caption = f"{steps} updates from the gray dot, each at the best of {len(RATES)} learning rates"
    figure.text(0.006, 1 - (header - 0.24) / height, caption, va="bottom", fontsize=8)
    figure.savefig(path, dpi=120)


def _draw(axis: Any, landscape: str, points: np.ndarray, rate: float, color: str) -> None:
    """Draw one path, points of shape (steps + 1, 2), over the contours of its landscape."""
    function, start, width = LANDSCAPES[landscape]
    side = np.linspace(-width, width, 80)
    heights = np.asarray(function(*np.meshgrid(side, side)))
    levels = np.sqrt(heights - heights.min())
    axis.contour(side, side, levels, levels=9, colors="0.82", linewidths=0.5)
    axis.plot(*points.T, color=color, linewidth=1)
    axis.plot(*start, "o", color="0.4", markersize=3)
    axis.plot(*points[-1], "o", color=color, markersize=4)
    axis.set(xlim=(-width, width), ylim=(-width, width), aspect="equal", xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color="0.8", linewidth=0.5)
    axis.text(0.03, 0.03, f"lr {float(f'{rate:.1g}'):g}", fontsize=6.5, transform=axis.transAxes,
              bbox={"color": "white", "pad": 0.5, "alpha": 0.8})  # fmt: skip
