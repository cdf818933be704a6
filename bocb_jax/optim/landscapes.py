"""Every optimizer's path over a few toy landscapes, as one picture."""

import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bocb_jax.errors import UserError
from bocb_jax.optim.hyperparameters import set_hyperparameters
from bocb_jax.optim.table import create_optimizer, list_optimizers, optimizer_info

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
    """The path of an optimizer over each landscape at the best of 23 learning rates.

    Best is the lowest mean height after the first quarter of the steps.

    The two coordinates are one (2, 1) matrix, so that what is made for matrices acts as such.

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
        late = jax.vmap(lambda p: height({"xy": p[:, None]}, which))(points[steps // 4 :])
        return points, jnp.where(jnp.isfinite(points).all(), late.mean(), jnp.inf)

    grid = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))
    points, final = grid(jnp.arange(len(functions)), jnp.asarray(RATES, jnp.float32))
    best = np.argmin(np.asarray(final), axis=1)
    return {
        landscape: (float(RATES[best[i]]), np.asarray(points[i, best[i]]))
        for i, landscape in enumerate(LANDSCAPES)
    }


def plot(path: str | pathlib.Path, names: Iterable[str] | None = None, steps: int = 120) -> None:
    """Draws the paths of the optimizers, all by default, into an image file.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("The picture needs matplotlib: pip install matplotlib.") from error
    names = list_optimizers() if names is None else list(names)
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(across * 3.9, down * 1.55), layout="constrained")
    axes = figure.subplots(down, across * len(LANDSCAPES), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, name in enumerate(names):
        row, column = divmod(i, across)
        found = paths(name, steps)
        for j, (landscape, (rate, points)) in enumerate(found.items()):
            title = name if j == 0 else ""
            _draw(axes[row, column * len(LANDSCAPES) + j], landscape, points, rate, title,
                  COLORS[optimizer_info(name).category])  # fmt: skip
    figure.savefig(path, dpi=110)


def _draw(axis, landscape, points, rate, title, color):
    function, start, width = LANDSCAPES[landscape]
    side = np.linspace(-width, width, 80)
    x, y = np.meshgrid(side, side)
    heights = np.asarray(function(x, y))
    axis.contour(x, y, np.sqrt(heights - heights.min()), levels=9, colors="0.8", linewidths=0.5)
    axis.plot(*points.T, color=color, linewidth=1)
    axis.plot(*start, "o", color="0.4", markersize=2.5)
    axis.plot(*points[-1], "o", color=color, markersize=3.5)
    axis.set(xlim=(-width, width), ylim=(-width, width), aspect="equal")
    axis.set_title(title or f"lr {rate:.1g}", fontsize=7, loc="left", pad=2)
    if title:
        axis.text(0.02, 0.02, f"lr {rate:.1g}", fontsize=6, transform=axis.transAxes)
