"""NAdam with the schedule of its momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row


class ScaleByNadamState(NamedTuple):
    """State of `scale_by_nadam`; moments have the shapes of the parameters."""

    count: Any  # updates done: int32, shape ()
    mu_product: jax.Array  # product of the scheduled momenta so far, shape ()
    mu: optax.Updates  # mean gradient
    nu: optax.Updates  # mean of its square


def scale_by_nadam(
    b1: float, b2: float, eps: float, momentum_decay: float
) -> optax.GradientTransformation:
    """Rescale updates according to NAdam; see `nadam`."""

    def momentum(count: jax.Array) -> jax.Array:
        return b1 * (1 - 0.5 * 0.96 ** (momentum_decay * count))

    def init_fn(params: optax.Params) -> ScaleByNadamState:
        zeros = optax.tree.zeros_like(params)
        one = jnp.ones((), jnp.result_type(*jax.tree.leaves(params)))
        return ScaleByNadamState(jnp.zeros((), jnp.int32), one, zeros, zeros)

    def update_fn(
        updates: optax.Updates, state: ScaleByNadamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByNadamState]:
        del params
        count = optax.safe_increment(state.count)
        now, after = momentum(count), momentum(count + 1)
        product = (state.mu_product * now).astype(state.mu_product.dtype)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)

        def direction(g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            ahead = (1 - now) / (1 - product) * g + after / (1 - product * after) * m
            return ahead / (jnp.sqrt(v / (1 - b2**count)) + eps)

        updates = jax.tree.map(direction, updates, mu, nu)
        return updates, ScaleByNadamState(count, product, mu, nu)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("l2", "decoupled"),
    default_learning_rate=5e-4,
    reference="torch.optim.NAdam",
    numeric_class="exact",
    state_per_parameter=2,
    notes="Optax's nadam has no schedule of the momentum.",
)
def nadam(
    ctx: Context,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    eps: NonNegative = 1e-8,
    momentum_decay: NonNegative = 4e-3,
) -> optax.GradientTransformation:
    """Add Nesterov's look ahead to Adam, with a momentum that grows towards b1 (NAdam).

    b_t = b1 (1 - 0.96^(t momentum_decay) / 2);  B_t = b_1 b_2 ... b_t
    p <- p - lr * ((1 - b_t) / (1 - B_t) g + b_{t+1} / (1 - B_{t+1}) m) / (sqrt(v̂) + eps)

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient, and the limit of the scheduled momentum.
      b2: decay of the mean of its square.
      eps: added to the root.
      momentum_decay: speed of the schedule.

    References:
      Dozat, 2016, Incorporating Nesterov Momentum into Adam, ICLR workshop
    """
    return ctx.chain(scale_by_nadam(b1, b2, eps, momentum_decay))
