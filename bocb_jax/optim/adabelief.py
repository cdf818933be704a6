"""AdaBelief: Adam that divides by how far the gradient strays from its mean."""

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Context
from bocb_jax.optim.radam import rectification
from bocb_jax.optim.registry import add_row


def scale_by_adabelief(
    b1: float, b2: float, eps: float, rectify: bool
) -> optax.GradientTransformation:
    """Rescale updates according to AdaBelief; see `adabelief`. The state is Adam's."""

    def init_fn(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update_fn(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        # eps stays in the state: it adds up, as published.
        nu = jax.tree.map(
            lambda s, g, m: b2 * s + (1 - b2) * jnp.square(g - m) + eps, state.nu, updates, mu
        )
        rectifier, tractable = rectification(count, b2)

        def plain(m: jax.Array, s: jax.Array) -> jax.Array:
            return m / (1 - b1**count) / (jnp.sqrt(s / (1 - b2**count)) + eps)

        def rectified(m: jax.Array, s: jax.Array) -> jax.Array:
            adaptive = rectifier * jnp.sqrt(1 - b2**count) / (jnp.sqrt(s) + eps)
            return m / (1 - b1**count) * jnp.where(tractable, adaptive, 1.0)

        updates = jax.tree.map(rectified if rectify else plain, mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("decoupled", "l2"),
    default_learning_rate=5e-3,
    default_weight_decay=0.01,
    reference="timm.optim.AdaBelief",
    numeric_class="exact",
    state_per_parameter=2,
    notes="Optax's adabelief does not rectify.",
)
def adabelief(
    ctx: Context,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    eps: NonNegative = 1e-16,
    rectify: bool = True,
) -> optax.GradientTransformation:
    """Divide the mean gradient by its deviation from that mean, rectified (AdaBelief).

    m <- b1 m + (1 - b1) g;  s <- b2 s + (1 - b2) (g - m)² + eps
    p <- p - lr * m̂ / (sqrt(ŝ) + eps),  rectified: see `radam`

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its squared deviation.
      eps: added to s at each update, and to its root.
      rectify: use momentum alone until s can be trusted.

    References:
      Zhuang et al., 2020, arXiv 2010.07468
    """
    return ctx.chain(scale_by_adabelief(b1, b2, eps, rectify))
