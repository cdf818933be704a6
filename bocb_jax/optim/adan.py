"""Adan: Adam with the mean of gradient differences as its look ahead."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Positive
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row


class ScaleByAdanState(NamedTuple):
    """State of `scale_by_adan`; trees have the shapes of the parameters."""

    count: Any  # updates done: int32, shape ()
    mu: optax.Updates  # mean gradient
    delta: optax.Updates  # mean difference of successive gradients
    nu: optax.Updates  # mean square of the gradient looked ahead
    previous: optax.Updates  # last gradient


def scale_by_adan(b1: float, b2: float, b3: float, eps: float) -> optax.GradientTransformation:
    """Rescale updates according to Adan; see `adan`."""

    def init_fn(params: optax.Params) -> ScaleByAdanState:
        zeros = optax.tree.zeros_like(params)
        return ScaleByAdanState(jnp.zeros((), jnp.int32), zeros, zeros, zeros, zeros)

    def update_fn(
        updates: optax.Updates, state: ScaleByAdanState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdanState]:
        del params
        grads = updates
        count = optax.safe_increment(state.count)
        first = count == 1
        difference = jax.tree.map(
            lambda g, last: jnp.where(first, 0, g - last), grads, state.previous
        )
        ahead = jax.tree.map(lambda g, d: g + b2 * d, grads, difference)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        delta = optax.tree.update_moment(difference, state.delta, b2, 1)
        nu = optax.tree.update_moment(ahead, state.nu, b3, 2)

        def direction(m: jax.Array, d: jax.Array, n: jax.Array) -> jax.Array:
            m_hat, d_hat, n_hat = m / (1 - b1**count), d / (1 - b2**count), n / (1 - b3**count)
            return (m_hat + b2 * d_hat) / (jnp.sqrt(n_hat) + eps)

        updates = jax.tree.map(direction, mu, delta, nu)
        return updates, ScaleByAdanState(count, mu, delta, nu, grads)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("proximal", "decoupled"),
    default_learning_rate=2e-3,
    default_weight_decay=0.05,
    reference="timm.optim.Adan",
    numeric_class="exact",
    state_per_parameter=4,
    notes="Optax's adan weights the differences with 1 - b2 instead of b2.",
)
def adan(
    ctx: Context,
    *,
    b1: Beta = 0.98,
    b2: Beta = 0.92,
    b3: Beta = 0.99,
    eps: NonNegative = 1e-8,
    max_grad_norm: Positive | None = None,
) -> optax.GradientTransformation:
    """Look ahead along the mean difference of gradients, with proximal weight decay (Adan).

    d = g - g_previous (0 at first);  m, D, n <- means of g, d, (g + b2 d)², decays b1, b2, b3
    p <- (p - lr * (m̂ + b2 D̂) / (sqrt(n̂) + eps)) / (1 + lr wd)

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean gradient.
      b2: decay of the mean difference, and its weight in the step.
      b3: decay of the mean square.
      eps: added to the root.
      max_grad_norm: clip the global norm of the gradient to this first; None for no clipping.

    References:
      Xie et al., 2023, arXiv 2208.06677
    """
    clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
    return ctx.chain(clip, scale_by_adan(b1, b2, b3, eps))
