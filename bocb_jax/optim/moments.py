"""Adam's two moments: what the optimizers share that make another direction of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def scale_by_moments(
    b1: float, b2: float, direction: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
) -> optax.GradientTransformation:
    """A direction made of the mean of the gradient and the mean of its square.

    Args:
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      direction: (count of updates, this one included; m; v) -> u, for each tensor.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads, state, params=None):
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        updates = jax.tree.map(lambda m, v: direction(count, m, v), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)
