"""Prodigy: Adam that estimates its own learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Positive
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import add_row


class ProdigyState(NamedTuple):
    """Trees have the shapes of the parameters."""

    count: jax.Array  # int32, shape ()
    distance: jax.Array  # d, the estimated distance to the solution, shape ()
    largest: jax.Array  # largest estimate so far, shape ()
    numerator: jax.Array  # shape ()
    mu: Any
    nu: Any
    weighted: Any  # s, the weighted sum of gradients
    start: Any  # the initial parameters


def scale_by_prodigy(
    pack: Packaging,
    *,
    b1: float,
    b2: float,
    b3: float | None,
    eps: float,
    d0: float,
    d_coefficient: float,
    bias_correction: bool,
    safeguard_warmup: bool,
) -> optax.GradientTransformation:
    """The mathematics of `prodigy`; weight decay included, learning rate not."""
    b3 = b2**0.5 if b3 is None else b3

    def init(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))
        zeros = optax.tree.zeros_like(params)
        start = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # no alias
        d = jnp.asarray(d0, dtype)
        zero = jnp.zeros((), dtype)
        return ProdigyState(jnp.zeros((), jnp.int32), d, d, zero, zeros, zeros, zeros, start)

    def update(grads, state, params):
        count = optax.safe_increment(state.count)
        d = state.distance
        correction = jnp.sqrt(1 - b2**count) / (1 - b1**count) if bias_correction else 1.0
        rate = d * correction  # in units of the learning rate
        moved = jax.tree.map(jnp.subtract, state.start, params)
        weight = d / d0 * pack.learning_rate * rate
        numerator = b3 * state.numerator + weight * optax.tree.vdot(grads, moved)
        weighing = d / d0 * d if safeguard_warmup else weight
        weighted = jax.tree.map(lambda s, g: b3 * s + weighing * g, state.weighted, grads)
        total = optax.tree.norm(weighted, ord=1)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * d * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (d * g) ** 2, state.nu, grads)

        usable = (total > 0) & (pack.learning_rate > 0)
        estimate = d_coefficient * numerator / jnp.where(usable, total, 1)
        estimate = jnp.where(usable, estimate, d)
        largest = jnp.maximum(state.largest, estimate)
        distance = jnp.where(usable, largest, d)

        u = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + distance * eps), mu, nu)
        u = jax.tree.map(lambda u: jnp.where(total > 0, u, 0), u)
        u, _ = pack.add_decay().update(u, optax.EmptyState(), params)
        updates = jax.tree.map(lambda u: rate * u, u)
        after = ProdigyState(count, distance, largest, numerator, mu, nu, weighted, state.start)
        return updates, after

    return optax.GradientTransformation(init, update)


@add_row(
    category="later",
    paper="Mishchenko and Defazio, 2024, arXiv 2306.06101",
    decays=("decoupled",),
    default_learning_rate=1.0,
    reference="prodigyopt.Prodigy",
    numeric_class="exact",
    state_per_parameter=4,
    cost="element-wise, a dot product and a norm over all parameters",
    notes="The learning rate is a factor on the estimate: leave it at 1. Optax's corrects bias.",
)
def prodigy(
    pack: Packaging,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    b3: Beta | None = None,
    eps: NonNegative = 1e-8,
    d0: Positive = 1e-6,
    d_coefficient: Positive = 1.0,
    bias_correction: bool = False,
    safeguard_warmup: bool = False,
):
    """Prodigy: Adam that estimates its own learning rate.

    r <- b3 r + lr d²/d0 g . (p_0 - p);  s <- b3 s + lr d²/d0 g
    d <- max(d, d_coefficient r / |s|),  |s| being the sum of absolute values
    p <- p - lr d (m / (sqrt(v) + d eps) + wd p),  m and v being Adam's means of d g

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      b3: decay of the sums that estimate d; None for sqrt(b2).
      eps: added to the root.
      d0: first estimate.
      d_coefficient: factor on the estimates.
      bias_correction: of m and v, as Adam has it.
      safeguard_warmup: keep the learning rate out of s, so that a warm-up does not inflate d.
    """
    return optax.chain(
        scale_by_prodigy(
            pack,
            b1=b1,
            b2=b2,
            b3=b3,
            eps=eps,
            d0=d0,
            d_coefficient=d_coefficient,
            bias_correction=bias_correction,
            safeguard_warmup=safeguard_warmup,
        ),
        pack.step(),
    )
