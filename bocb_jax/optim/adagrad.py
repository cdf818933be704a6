"""Adagrad, with an accumulator that starts at zero and eps outside the root."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import NonNegative
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import add_row


class ScaleByAdagradState(NamedTuple):
    """Sum of squared gradients; shapes of the parameters."""

    sum_of_squares: Any


def scale_by_adagrad(initial_accumulator: float, eps: float) -> optax.GradientTransformation:
    """The mathematics of `adagrad`."""

    def init(params):
        return ScaleByAdagradState(optax.tree.full_like(params, initial_accumulator))

    def update(grads, state, params=None):
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, grads)
        updates = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), grads, total)
        return updates, ScaleByAdagradState(total)

    return optax.GradientTransformation(init, update)


@add_row(
    category="d",
    paper="Duchi, Hazan and Singer, 2011, JMLR 12",
    decays=("l2", "decoupled"),
    default_learning_rate=1e-2,
    default_weight_decay=1e-4,
    paper_learning_rate=(5e-4,),
    paper_weight_decay=(1e-4,),
    reference="torch.optim.Adagrad",
    numeric_class="exact",
    state_per_parameter=1,
    notes=(
        "The default learning rate is PyTorch's; at the paper's the weights hardly move in a short "
        "run."
    ),
)
def adagrad(pack: Packaging, *, initial_accumulator: NonNegative = 0.0, eps: NonNegative = 1e-10):
    """Adagrad: the gradient over the root of the sum of all its squares.

    s <- s + g²;  p <- p - lr * g / (sqrt(s) + eps)

    Args:
      pack: learning rate, weight decay and masks.
      initial_accumulator: s before the first update.
      eps: added to the root.
    """
    return pack.chain(scale_by_adagrad(initial_accumulator, eps))
