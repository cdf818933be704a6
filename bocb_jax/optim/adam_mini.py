"""Adam-mini: one second moment for each output neuron instead of each weight."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.masks import DECAYED_KINDS
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import map_leaves


class AdamMiniState(NamedTuple):
    """A first moment for each weight, a second one for each block of weights."""

    count: jax.Array  # int32, shape ()
    mu: Any
    nu: Any  # axes inside a block have length 1


def block_axes(rank: int, kind: str) -> tuple[int, ...]:
    """The axes that a block spans.

    A kernel has a block for each output channel, a table of embeddings one for each row, and any
    other tensor is one block.
    """
    if kind in DECAYED_KINDS:
        return tuple(range(rank - 1))
    if kind == "embedding" and rank > 1:
        return (rank - 1,)
    return tuple(range(rank))


def scale_by_adam_mini(
    pack: Packaging, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """The mathematics of `adam_mini`."""

    def mean_square(g, kind):
        return jnp.mean(g * g, block_axes(g.ndim, kind), keepdims=True)

    def init(params):
        nu = jax.tree.map(
            lambda p, kind: jnp.zeros_like(mean_square(p, kind)), params, pack.kinds(params)
        )
        return AdamMiniState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), nu)

    def update(grads, state, params):
        count = optax.safe_increment(state.count)

        def direction(g, m, v, kind):
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * mean_square(g, kind)
            return m / (1 - b1**count) / (jnp.sqrt(v / (1 - b2**count)) + eps), m, v

        updates, mu, nu = map_leaves(direction, grads, state.mu, state.nu, pack.kinds(params))
        return updates, AdamMiniState(count, mu, nu)

    return optax.GradientTransformation(init, update)


@add_row(
    category="later",
    paper="Zhang et al., 2024, arXiv 2406.16793",
    decays=("decoupled",),
    default_learning_rate=5e-4,
    default_weight_decay=0.05,
    reference="the paper, in NumPy",
    numeric_class="exact",
    state_per_parameter=1,
    notes="Queries and keys too have a block for each output, finer than the paper's head.",
)
def adam_mini(pack: Packaging, *, b1: Beta = 0.9, b2: Beta = 0.999, eps: NonNegative = 1e-8):
    """AdamW whose second moment is a mean over blocks of weights.

    v <- b2 v + (1 - b2) mean of g² over the block;  p <- p - lr * (m̂ / (sqrt(v̂) + eps) + wd p)

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean square of a block.
      eps: added to the root.
    """
    return pack.chain(scale_by_adam_mini(pack, b1, b2, eps))
