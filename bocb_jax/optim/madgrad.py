"""MADGRAD: dual averaging with momentum and a cube root."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import PerParam, map_leaves


class ScaleByMadgradState(NamedTuple):
    """State of `scale_by_madgrad`; trees have the shapes of the parameters."""

    count: Any  # updates done: int32, shape ()
    total: optax.Updates  # weighted sum of gradients
    squares: optax.Updates  # weighted sum of their squares
    start: optax.Params  # the initial parameters


def scale_by_madgrad(
    learning_rates: PerParam, momentum: float, eps: float
) -> optax.GradientTransformation:
    """Replace the gradient by MADGRAD's change of the parameters, learning rate included.

    Args:
      learning_rates: parameters -> tree of learning rates, shape () each.
      momentum: share of the parameters that stays.
      eps: added to the root and to the learning rate.
    """

    def init_fn(params: optax.Params) -> ScaleByMadgradState:
        zeros = optax.tree.zeros_like(params)
        start = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # no alias
        return ScaleByMadgradState(jnp.zeros((), jnp.int32), zeros, zeros, start)

    def update_fn(
        updates: optax.Updates, state: ScaleByMadgradState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByMadgradState]:
        count = optax.safe_increment(state.count)

        def change(
            g: jax.Array,
            p: jax.Array,
            total: jax.Array,
            squares: jax.Array,
            start: jax.Array,
            rate: jax.Array,
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            weight = (rate + eps) * jnp.sqrt(1.0 * count)
            total, squares = total + weight * g, squares + weight * g * g
            target = start - total / (jnp.cbrt(squares) + eps)
            return (1 - momentum) * (target - p), total.astype(g.dtype), squares.astype(g.dtype)

        updates, total, squares = map_leaves(
            change,
            updates,
            params,
            state.total,
            state.squares,
            state.start,
            learning_rates(params),
        )
        return updates, ScaleByMadgradState(count, total, squares, state.start)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("l2",),
    default_learning_rate=1e-3,
    reference="timm.optim.MADGRAD",
    numeric_class="exact",
    state_per_parameter=3,
    notes="Optax's madgrad differs by where eps is added.",
)
def madgrad(
    ctx: Context, *, momentum: Beta = 0.9, eps: NonNegative = 1e-6
) -> optax.GradientTransformation:
    """Average gradients from the starting point, with momentum and a cube root (MADGRAD).

    s <- s + lr sqrt(t) g;  v <- v + lr sqrt(t) g²;  z = p_0 - s / (v^(1/3) + eps)
    p <- momentum p + (1 - momentum) z

    Args:
      ctx: learning rate, weight decay and masks.
      momentum: share of the parameters that stays.
      eps: added to the root and to the learning rate.

    References:
      Defazio and Jelassi, 2022, arXiv 2101.11075
    """
    return optax.chain(
        ctx.add_decayed_weights(), scale_by_madgrad(ctx.learning_rates, momentum, eps)
    )
