"""MARS-AdamW: AdamW on a gradient whose variance is reduced by the previous one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import map_leaves


class ScaleByMarsState(NamedTuple):
    """State of `scale_by_mars`; trees have the shapes of the parameters."""

    count: Any  # updates done: int32, shape ()
    mu: optax.Updates  # mean of the corrected gradient
    nu: optax.Updates  # mean of its square
    previous: optax.Updates  # last gradient


def scale_by_mars(
    b1: float, b2: float, gamma: float, eps: float, b1_vector: float, b2_vector: float
) -> optax.GradientTransformation:
    """Rescale updates according to MARS-AdamW; see `mars`."""

    def init_fn(params: optax.Params) -> ScaleByMarsState:
        zeros = optax.tree.zeros_like(params)
        return ScaleByMarsState(jnp.zeros((), jnp.int32), zeros, zeros, zeros)

    def update_fn(
        updates: optax.Updates, state: ScaleByMarsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByMarsState]:
        del params
        grads = updates
        count = optax.safe_increment(state.count)

        def direction(
            g: jax.Array, m: jax.Array, v: jax.Array, last: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            d1, d2 = (b1, b2) if g.ndim > 1 else (b1_vector, b2_vector)
            if g.ndim > 1:
                g = g + jnp.where(count == 1, 0, gamma * b1 / (1 - b1) * (g - last))
                g = g / jnp.maximum(1, optax.tree.norm(g))
            m, v = d1 * m + (1 - d1) * g, d2 * v + (1 - d2) * g * g
            u = m / (1 - d1**count) / (jnp.sqrt(v / (1 - d2**count)) + eps)
            return u, m, v

        updates, mu, nu = map_leaves(direction, grads, state.mu, state.nu, state.previous)
        return updates, ScaleByMarsState(count, mu, nu, grads)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=3e-3,
    default_weight_decay=0.05,
    reference="timm.optim.Mars",
    numeric_class="exact",
    state_per_parameter=3,
    cost="element-wise and one norm for each tensor",
    notes="The approximate form: the previous gradient comes from the previous batch.",
)
def mars(
    ctx: Context,
    *,
    b1: Beta = 0.95,
    b2: Beta = 0.99,
    gamma: NonNegative = 0.025,
    eps: NonNegative = 1e-8,
    b1_vector: Beta = 0.9,
    b2_vector: Beta = 0.95,
) -> optax.GradientTransformation:
    """Reduce the variance of AdamW's gradient by the previous gradient (MARS-AdamW).

    c = g + gamma b1 / (1 - b1) (g - g_previous);  c <- c / max(1, |c|), for each tensor
    p <- p - lr * (m̂ / (sqrt(v̂) + eps) + wd p),  m and v being Adam's means of c
    Vectors keep c = g.

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of c.
      b2: decay of the mean of its square.
      gamma: weight of the difference of gradients.
      eps: added to the root.
      b1_vector: b1 of vectors.
      b2_vector: b2 of vectors.

    References:
      Yuan et al., 2024, arXiv 2411.10438
    """
    return ctx.chain(scale_by_mars(b1, b2, gamma, eps, b1_vector, b2_vector))
