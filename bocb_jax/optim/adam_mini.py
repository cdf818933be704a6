"""Adam-mini: one second moment for each output neuron instead of each weight."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Context
from bocb_jax.optim.masks import DECAYED_KINDS
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import PerParam, map_leaves


class ScaleByAdamMiniState(NamedTuple):
    """State of `scale_by_adam_mini`: a second moment for each block of weights."""

    count: Any  # updates done: int32, shape ()
    mu: optax.Updates  # mean gradient; shapes of the parameters
    nu: optax.Updates  # mean square of a block; axes inside a block have length 1


def block_axes(rank: int, kind: str) -> tuple[int, ...]:
    """Return the axes that a block of weights spans.

    A kernel has a block for each output channel, a table of embeddings one for each row; any other
    tensor is one block.
    """
    if kind in DECAYED_KINDS:
        return tuple(range(rank - 1))
    if kind == "embedding" and rank > 1:
        return (rank - 1,)
    return tuple(range(rank))


def scale_by_adam_mini(
    b1: float, b2: float, eps: float, kinds: PerParam
) -> optax.GradientTransformation:
    """Rescale updates according to Adam-mini; see `adam_mini`.

    Args:
      b1: decay of the mean of the gradient.
      b2: decay of the mean square of a block.
      eps: added to the root.
      kinds: parameters -> tree of parameter kinds, which decide the blocks.
    """

    def mean_square(g: jax.Array, kind: str) -> jax.Array:
        return jnp.mean(g * g, block_axes(g.ndim, kind), keepdims=True)

    def init_fn(params: optax.Params) -> ScaleByAdamMiniState:
        nu = jax.tree.map(
            lambda p, kind: jnp.zeros_like(mean_square(p, kind)), params, kinds(params)
        )
        return ScaleByAdamMiniState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), nu)

    def update_fn(
        updates: optax.Updates, state: ScaleByAdamMiniState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdamMiniState]:
        count = optax.safe_increment(state.count)

        def direction(
            g: jax.Array, m: jax.Array, v: jax.Array, kind: str
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * mean_square(g, kind)
            return m / (1 - b1**count) / (jnp.sqrt(v / (1 - b2**count)) + eps), m, v

        updates, mu, nu = map_leaves(direction, updates, state.mu, state.nu, kinds(params))
        return updates, ScaleByAdamMiniState(count, mu, nu)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=5e-4,
    default_weight_decay=0.05,
    reference="the paper, in NumPy",
    numeric_class="exact",
    state_per_parameter=1,
    notes="Queries and keys too have a block for each output, finer than the paper's head.",
)
def adam_mini(
    ctx: Context, *, b1: Beta = 0.9, b2: Beta = 0.999, eps: NonNegative = 1e-8
) -> optax.GradientTransformation:
    """Apply AdamW with one second moment for each block of weights (Adam-mini).

    v <- b2 v + (1 - b2) mean of g² over the block;  p <- p - lr * (m̂ / (sqrt(v̂) + eps) + wd p)

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean square of a block.
      eps: added to the root.

    References:
      Zhang et al., 2024, arXiv 2406.16793
    """
    return ctx.chain(scale_by_adam_mini(b1, b2, eps, ctx.kinds))
