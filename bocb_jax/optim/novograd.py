"""NovoGrad: gradients normalized for each tensor, then momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import add_row


class ScaleByNovogradState(NamedTuple):
    """A momentum with the shape of the parameter and one squared norm for each tensor."""

    mu: Any
    nu: Any  # shape () for each tensor


def scale_by_novograd(
    pack: Packaging, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """The mathematics of `novograd`; weight decay enters the momentum."""
    add_decay = pack.add_decay()

    def init(params):
        norms = jax.tree.map(lambda p: jnp.zeros((), p.dtype), params)
        return ScaleByNovogradState(optax.tree.zeros_like(params), norms)

    def update(grads, state, params):
        squares = jax.tree.map(lambda g: jnp.sum(g * g), grads)
        nu = jax.tree.map(
            lambda v, new: jnp.where(v == 0, new, b2 * v + (1 - b2) * new), state.nu, squares
        )
        scaled = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + eps), grads, nu)
        scaled, _ = add_decay.update(scaled, optax.EmptyState(), params)
        mu = jax.tree.map(lambda m, u: b1 * m + u, state.mu, scaled)
        return mu, ScaleByNovogradState(mu, nu)

    return optax.GradientTransformation(init, update)


@add_row(
    category="c",
    paper="Ginsburg et al., 2019, arXiv 1905.11286",
    decays=("decoupled",),
    default_learning_rate=2e-3,
    default_weight_decay=0.01,
    paper_learning_rate=(2e-3,),
    paper_weight_decay=(0.01,),
    reference="timm.optim.NvNovoGrad",
    numeric_class="exact",
    state_per_parameter=1,
    cost="element-wise and one norm for each tensor",
    notes=(
        "Decay joins the normalized gradient, so it passes through the momentum. The step of a "
        "tensor is about as long whatever its size, which transformers follow slowly at this "
        "learning rate."
    ),
)
def novograd(pack: Packaging, *, b1: Beta = 0.95, b2: Beta = 0.98, eps: NonNegative = 1e-8):
    """NovoGrad, in NVIDIA's form (no average of the gradient, no bias correction).

    v <- b2 v + (1 - b2) |g|², |g|² at first;  m <- b1 m + g / (sqrt(v) + eps) + wd p
    p <- p - lr * m,  v being one number for each tensor

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the momentum.
      b2: decay of the squared norm.
      eps: added to the root.
    """
    return optax.chain(pack.direction(scale_by_novograd(pack, b1, b2, eps)), pack.step())
