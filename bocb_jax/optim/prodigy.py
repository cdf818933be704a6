"""Prodigy: Adam that estimates its own learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Positive
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.transforms import add_decayed_weights
from bocb_jax.optim.trees import PerParam


class ScaleByProdigyState(NamedTuple):
    """State of `scale_by_prodigy`; trees have the shapes of the parameters."""

    count: Any  # updates done: int32, shape ()
    distance: jax.Array  # d, the estimated distance to the solution, shape ()
    largest: jax.Array  # largest estimate so far, shape ()
    numerator: jax.Array  # r, shape ()
    mu: optax.Updates  # mean of d g
    nu: optax.Updates  # mean of (d g)²
    weighted: optax.Updates  # s, the weighted sum of gradients
    start: optax.Params  # the initial parameters


def scale_by_prodigy(
    learning_rate: float | jax.Array,
    *,
    b1: float,
    b2: float,
    b3: float | None,
    eps: float,
    d0: float,
    d_coefficient: float,
    bias_correction: bool,
    safeguard_warmup: bool,
    weight_decay: float | jax.Array,
    mask: PerParam,
) -> optax.GradientTransformation:
    """Rescale updates according to Prodigy, weight decay included; see `prodigy`.

    Args:
      learning_rate: factor on the updates afterwards, shape (); the estimate depends on it.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      b3: decay of the sums that estimate d; None for sqrt(b2).
      eps: added to the root.
      d0: first estimate.
      d_coefficient: factor on the estimates.
      bias_correction: correct m and v for their start at zero.
      safeguard_warmup: keep the learning rate out of s.
      weight_decay: coefficient, shape ().
      mask: parameters -> tree of booleans: where decay applies.
    """
    b3 = b2**0.5 if b3 is None else b3
    add_decay = add_decayed_weights(weight_decay, mask)

    def init_fn(params: optax.Params) -> ScaleByProdigyState:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        zeros = optax.tree.zeros_like(params)
        start = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # no alias
        d = jnp.asarray(d0, dtype)
        zero = jnp.zeros((), dtype)
        return ScaleByProdigyState(jnp.zeros((), jnp.int32), d, d, zero, zeros, zeros, zeros, start)

    def update_fn(
        updates: optax.Updates, state: ScaleByProdigyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByProdigyState]:
        grads = updates
        count = optax.safe_increment(state.count)
        d = state.distance
        correction = jnp.sqrt(1 - b2**count) / (1 - b1**count) if bias_correction else 1.0
        rate = d * correction  # in units of the learning rate
        moved = jax.tree.map(jnp.subtract, state.start, params)
        weight = d / d0 * learning_rate * rate
        numerator = b3 * state.numerator + weight * optax.tree.vdot(grads, moved)
        weighing = d / d0 * d if safeguard_warmup else weight
        weighted = jax.tree.map(lambda s, g: b3 * s + weighing * g, state.weighted, grads)
        total = optax.tree.norm(weighted, ord=1)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * d * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (d * g) ** 2, state.nu, grads)

        usable = (total > 0) & (learning_rate > 0)
        estimate = d_coefficient * numerator / jnp.where(usable, total, 1)
        estimate = jnp.where(usable, estimate, d)
        largest = jnp.maximum(state.largest, estimate)
        distance = jnp.where(usable, largest, d)

        u = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + distance * eps), mu, nu)
        u = jax.tree.map(lambda u: jnp.where(total > 0, u, 0), u)
        u, _ = add_decay.update(u, optax.EmptyState(), params)
        updates = jax.tree.map(lambda u: rate * u, u)
        return updates, ScaleByProdigyState(
            count, distance, largest, numerator, mu, nu, weighted, state.start
        )

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=1.0,
    reference="prodigyopt.Prodigy",
    numeric_class="exact",
    state_per_parameter=4,
    cost="element-wise, a dot product and a norm over all parameters",
    notes=(
        "The learning rate is a factor on the estimate: leave it at 1. Optax's prodigy always "
        "corrects bias."
    ),
)
def prodigy(
    ctx: Context,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    b3: Beta | None = None,
    eps: NonNegative = 1e-8,
    d0: Positive = 1e-6,
    d_coefficient: Positive = 1.0,
    bias_correction: bool = False,
    safeguard_warmup: bool = False,
) -> optax.GradientTransformation:
    """Estimate Adam's learning rate from the distance to the starting point (Prodigy).

    r <- b3 r + lr d²/d0 g . (p_0 - p);  s <- b3 s + lr d²/d0 g
    d <- max(d, d_coefficient r / |s|),  |s| being the sum of absolute values
    p <- p - lr d (m / (sqrt(v) + d eps) + wd p),  m and v being Adam's means of d g

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      b3: decay of the sums that estimate d; None for sqrt(b2).
      eps: added to the root.
      d0: first estimate.
      d_coefficient: factor on the estimates.
      bias_correction: correct m and v for their start at zero, as Adam does.
      safeguard_warmup: keep the learning rate out of s, so that a warm-up does not inflate d.

    References:
      Mishchenko and Defazio, 2024, arXiv 2306.06101
    """
    scale = scale_by_prodigy(
        ctx.learning_rate,
        b1=b1,
        b2=b2,
        b3=b3,
        eps=eps,
        d0=d0,
        d_coefficient=d_coefficient,
        bias_correction=bias_correction,
        safeguard_warmup=safeguard_warmup,
        weight_decay=ctx.weight_decay,
        mask=ctx.mask,
    )
    return optax.chain(scale, ctx.scale_by_learning_rate())
