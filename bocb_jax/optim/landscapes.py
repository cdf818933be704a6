"""Toy landscapes, and the path of an optimizer over each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bocb_jax.optim.injected import set_hyperparameters
from bocb_jax.optim.registry import create_optimizer, optimizer_info

Array = Any  # jax.Array or np.ndarray, of any shape


def valley(x: Array, y: Array) -> Array:
    """Return the height of a bowl fifty times steeper across than along."""
    return 0.5 * (0.1 * (x - 1) ** 2 + 5 * (y - 1) ** 2)


def banana(x: Array, y: Array) -> Array:
    """Return the height of Rosenbrock's curved valley, flattened; lowest at (1, 1)."""
    return jnp.log1p((1 - x) ** 2 + 20 * (y - x * x) ** 2)


def saddle(x: Array, y: Array) -> Array:
    """Return the height of two basins, with a saddle between them near which the path begins."""
    return 0.25 * (x * x - 1) ** 2 + 0.5 * (y - 0.5 * x) ** 2


# name -> (height, start, half width of the region); all are centered on the origin
LANDSCAPES = {
    "valley": (valley, (-1.6, 1.8), 2.2),
    "banana": (banana, (-1.2, 1.6), 2.2),
    "saddle": (saddle, (0.05, -1.6), 2.2),
}
RATES = np.logspace(-4, 1.5, 23)


def paths(name: str, steps: int = 120) -> dict[str, tuple[float, np.ndarray]]:
    """Run an optimizer over each landscape, at the best of `RATES`.

    The best learning rate has the lowest mean height over the whole path. The two coordinates are
    one (2, 1) matrix, so optimizers with a rule for matrices use it.

    Args:
      name: of the optimizer.
      steps: updates of a path.

    Returns:
      landscape -> (learning rate, points of shape (steps + 1, 2)).
    """
    info = optimizer_info(name)
    optimizer = create_optimizer(name, 1.0, decay_mask="all", parameter_kinds={"xy": "matrix"})
    functions = [function for function, _, _ in LANDSCAPES.values()]
    starts = jnp.asarray([start for _, start, _ in LANDSCAPES.values()])

    def height(params: dict[str, jax.Array], which: jax.Array) -> jax.Array:
        point = params["xy"][:, 0]
        return jax.lax.switch(which, [lambda p, f=f: f(p[0], p[1]) for f in functions], point)

    def run(which: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
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
        # So small that it bends no path, but switches on what depends on there being a decay.
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
