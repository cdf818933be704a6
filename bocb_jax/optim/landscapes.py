"""Every optimizer's path over a few toy landscapes, as one picture."""

import pathlib
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bocb_jax.errors import UserError
from bocb_jax.optim.injected import set_hyperparameters
from bocb_jax.optim.registry import CATEGORIES, create_optimizer, list_optimizers, optimizer_info

COLORS = {"a": "C0", "b": "C1", "c": "C2", "d": "C3", "later": "C4", "user": "C5"}


def valley(x, y):
    """A bowl fifty times steeper across than along."""
    return 0.5 * (0.1 * (x - 1) ** 2 + 5 * (y - 1) ** 2)


def banana(x, y):
    """Rosenbrock's curved valley, flattened; lowest at (1, 1)."""
    return jnp.log1p((1 - x) ** 2 + 20 * (y - x * x) ** 2)


def saddle(x, y):
    """Two basins with a saddle between them, next to which the path begins."""
    return 0.25 * (x * x - 1) ** 2 + 0.5 * (y - 0.5 * x) ** 2


# name -> (function, start, half width of the picture); all are centered on the origin
LANDSCAPES = {
    "valley": (valley, (-1.6, 1.8), 2.2),
    "banana": (banana, (-1.2, 1.6), 2.2),
    "saddle": (saddle, (0.05, -1.6), 2.2),
}
RATES = np.logspace(-4, 1.5, 23)


def paths(name: str, steps: int = 120) -> dict[str, tuple[float, np.ndarray]]:
    """The path of an optimizer over each landscape at the best of `RATES`.

    Best is the lowest mean height over the whole path. The two coordinates are one (2, 1) matrix,
    so that what is made for matrices acts as such.

    Returns:
      landscape -> (learning rate, points of shape (steps + 1, 2)).
    """
    info = optimizer_info(name)
    optimizer = create_optimizer(name, 1.0, decay_mask="all", parameter_kinds={"xy": "matrix"})
    functions = [function for function, _, _ in LANDSCAPES.values()]
    starts = jnp.asarray([start for _, start, _ in LANDSCAPES.values()])

    def height(params, which):
        point = params["xy"][:, 0]
        return jax.lax.switch(which, [lambda p, f=f: f(p[0], p[1]) for f in functions], point)

    def run(which, rate):
        def step(carry, key):
            params, state = carry
            value, grads = jax.value_and_grad(height)(params, which)
            updates, state = optimizer.update(
                grads,
                state,
                params,
                value=value,
                key=key,
                value_and_grad_fn=lambda p: jax.value_and_grad(height)(p, which),
                sampled_label_grad_fn=lambda p, key: jax.grad(height)(p, which),
            )
            params = optax.apply_updates(params, updates)
            shown = params
            if info.evaluation_parameters is not None:
                shown = info.evaluation_parameters(state, params)
            return (params, state), shown["xy"][:, 0]

        params = {"xy": starts[which][:, None]}
        # A decay so small that it bends no path, but switches on what depends on it.
        small = {"weight_decay": 1e-8} if info.decays else {}
        state = set_hyperparameters(optimizer.init(params), learning_rate=rate, **small)
        _, points = jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(0), steps))
        points = jnp.concatenate([starts[which][None], points])
        heights = jax.vmap(lambda p: height({"xy": p[:, None]}, which))(points)
        return points, jnp.where(jnp.isfinite(points).all(), heights.mean(), jnp.inf)

    grid = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))
    points, mean = grid(jnp.arange(len(functions)), jnp.asarray(RATES, jnp.float32))
    best = np.argmin(np.asarray(mean), axis=1)
    return {
        landscape: (float(RATES[best[i]]), np.asarray(points[i, best[i]]))
        for i, landscape in enumerate(LANDSCAPES)
    }


def plot(
    path: str | pathlib.Path,
    names: Iterable[str] | None = None,
    steps: int = 120,
    track: Callable[[list[str]], Iterable[str]] = iter,
) -> None:
    """Draws the paths of the optimizers, all by default, into an image file.

    Args:
      path: its suffix decides the format.
      names: optimizers; they come out sorted by category.
      steps: updates on a path.
      track: goes through the names as they are drawn, to show progress.

    Raises:
      UserError: matplotlib is not installed, or cannot write such a file there.
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
    categories = {name: optimizer_info(name).category for name in names or list_optimizers()}
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
    for name, cell in zip(track(names), cells, strict=False):
        axes = cell.subgridspec(1, len(LANDSCAPES), wspace=0.03).subplots(squeeze=False)[0]
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


def _draw(axis, landscape, points, rate, color):
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
