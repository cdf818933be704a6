"""MADGRAD: dual averaging with momentum and a cube root."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import map_leaves


class MadgradState(NamedTuple):
    """Trees have the shapes of the parameters."""

    count: jax.Array  # int32, shape ()
    total: Any  # weighted sum of gradients
    squares: Any  # weighted sum of their squares
    start: Any  # the initial parameters


def madgrad_steps(pack: Packaging, momentum: float, eps: float) -> optax.GradientTransformation:
    """The changes of the parameters, learning rate included."""

    def init(params):
        zeros = optax.tree.zeros_like(params)
        start = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # no alias
        return MadgradState(jnp.zeros((), jnp.int32), zeros, zeros, start)

    def update(grads, state, params):
        count = optax.safe_increment(state.count)

        def change(g, p, total, squares, start, rate):
            weight = (rate + eps) * jnp.sqrt(1.0 * count)
            total, squares = total + weight * g, squares + weight * g * g
            target = start - total / (jnp.cbrt(squares) + eps)
            return (1 - momentum) * (target - p), total.astype(g.dtype), squares.astype(g.dtype)

        updates, total, squares = map_leaves(
            change, grads, params, state.total, state.squares, state.start, pack.rates(params)
        )
        return updates, MadgradState(count, total, squares, state.start)

    return optax.GradientTransformation(init, update)


@add_row(
    category="later",
    paper="Defazio and Jelassi, 2022, arXiv 2101.11075",
    decays=("l2",),
    default_learning_rate=1e-3,
    reference="timm.optim.MADGRAD",
    numeric_class="exact",
    state_per_parameter=3,
    notes="Optax's madgrad differs by where eps is added.",
)
def madgrad(pack: Packaging, *, momentum: Beta = 0.9, eps: NonNegative = 1e-6):
    """MADGRAD: dual averaging, with momentum and a cube root.

    s <- s + lr sqrt(t) g;  v <- v + lr sqrt(t) g²;  z = p_0 - s / (v^(1/3) + eps)
    p <- momentum p + (1 - momentum) z

    Args:
      pack: learning rate, weight decay and masks.
      momentum: share of the parameters that stays.
      eps: added to the root and to the learning rate.
    """
    return optax.chain(pack.add_decay(), madgrad_steps(pack, momentum, eps))
