"""Adagrad, with an accumulator that starts at zero and eps outside the root."""

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import NonNegative
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row


def scale_by_adagrad(initial_accumulator: float, eps: float) -> optax.GradientTransformation:
    """Rescale updates according to Adagrad; see `adagrad`. The state is Optax's for this sum."""

    def init_fn(params: optax.Params) -> optax.ScaleByRssState:
        return optax.ScaleByRssState(optax.tree.full_like(params, initial_accumulator))

    def update_fn(
        updates: optax.Updates, state: optax.ScaleByRssState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByRssState]:
        del params
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, updates)
        updates = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, total)
        return updates, optax.ScaleByRssState(total)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("l2", "decoupled"),
    default_learning_rate=1e-2,
    default_weight_decay=1e-4,
    reference="torch.optim.Adagrad",
    numeric_class="exact",
    state_per_parameter=1,
    notes=(
        "The default learning rate is PyTorch's; at the paper's the weights hardly move in a short "
        "run."
    ),
)
def adagrad(
    ctx: Context, *, initial_accumulator: NonNegative = 0.0, eps: NonNegative = 1e-10
) -> optax.GradientTransformation:
    """Divide the gradient by the root of the sum of all its squares (Adagrad).

    s <- s + g²;  p <- p - lr * g / (sqrt(s) + eps)

    Args:
      ctx: learning rate, weight decay and masks.
      initial_accumulator: s before the first update.
      eps: added to the root.

    References:
      Duchi, Hazan and Singer, 2011, JMLR 12
    """
    return ctx.chain(scale_by_adagrad(initial_accumulator, eps))
