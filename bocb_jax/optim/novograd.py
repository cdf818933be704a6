"""NovoGrad: gradients normalized for each tensor, then momentum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.transforms import add_decayed_weights
from bocb_jax.optim.trees import PerParam


class ScaleByNovogradState(NamedTuple):
    """State of `scale_by_novograd`."""

    mu: optax.Updates  # momentum; shapes of the parameters
    nu: optax.Updates  # mean squared norm of each tensor's gradient, shape () each


def scale_by_novograd(
    b1: float, b2: float, eps: float, weight_decay: float | jax.Array, mask: PerParam
) -> optax.GradientTransformation:
    """Rescale updates according to NovoGrad, whose momentum includes weight decay; see `novograd`.

    Args:
      b1: decay of the momentum.
      b2: decay of the squared norm.
      eps: added to the root.
      weight_decay: coefficient, shape ().
      mask: parameters -> tree of booleans: where decay applies.
    """
    add_decay = add_decayed_weights(weight_decay, mask)

    def init_fn(params: optax.Params) -> ScaleByNovogradState:
        norms = jax.tree.map(lambda p: jnp.zeros((), p.dtype), params)
        return ScaleByNovogradState(optax.tree.zeros_like(params), norms)

    def update_fn(
        updates: optax.Updates, state: ScaleByNovogradState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByNovogradState]:
        squares = jax.tree.map(lambda g: jnp.sum(g * g), updates)
        nu = jax.tree.map(
            lambda v, new: jnp.where(v == 0, new, b2 * v + (1 - b2) * new), state.nu, squares
        )
        scaled = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + eps), updates, nu)
        scaled, _ = add_decay.update(scaled, optax.EmptyState(), params)
        mu = jax.tree.map(lambda m, u: b1 * m + u, state.mu, scaled)
        return mu, ScaleByNovogradState(mu, nu)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=2e-3,
    default_weight_decay=0.01,
    reference="timm.optim.NvNovoGrad",
    numeric_class="exact",
    state_per_parameter=1,
    cost="element-wise and one norm for each tensor",
    notes=(
        "Decay joins the normalized gradient, so it passes through the momentum. The step of a "
        "tensor has about the same length whatever its size; at this learning rate transformers "
        "train slowly with it."
    ),
)
def novograd(
    ctx: Context, *, b1: Beta = 0.95, b2: Beta = 0.98, eps: NonNegative = 1e-8
) -> optax.GradientTransformation:
    """Normalize the gradient of each tensor, then add momentum (NovoGrad, NVIDIA's form).

    v <- b2 v + (1 - b2) |g|², |g|² at first;  m <- b1 m + g / (sqrt(v) + eps) + wd p
    p <- p - lr * m,  v being one number for each tensor
    The gradient is not averaged, and no bias corrected.

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the momentum.
      b2: decay of the squared norm.
      eps: added to the root.

    References:
      Ginsburg et al., 2019, arXiv 1905.11286
    """
    scale = scale_by_novograd(b1, b2, eps, ctx.weight_decay, ctx.mask)
    return optax.chain(ctx.direction(scale), ctx.scale_by_learning_rate())
