"""LAMB: Adam's direction, rescaled for each layer to the norm of its weights."""

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Positive
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import add_row


def scale_by_trust_ratio(pack: Packaging, always_adapt: bool) -> optax.GradientTransformation:
    """u <- u |p| / |u|, with ratio 1 where either norm is 0.

    Parameters without weight decay keep their u, unless `always_adapt`.
    """

    def rescale(u, p, decayed):
        if not (decayed or always_adapt):
            return u
        p_norm, u_norm = optax.tree.norm(p), optax.tree.norm(u)
        usable = (p_norm > 0) & (u_norm > 0)
        if not always_adapt:
            usable &= pack.weight_decay != 0
        return u * jnp.where(usable, p_norm / jnp.where(usable, u_norm, 1), 1)

    def update(updates, params):
        return jax.tree.map(rescale, updates, params, pack.mask(params))

    return optax.stateless(update)


@add_row(
    category="b",
    paper="You et al., 2020, arXiv 1904.00962",
    decays=("decoupled",),
    default_learning_rate=5e-3,
    default_weight_decay=0.05,
    paper_learning_rate=(5e-3,),
    paper_weight_decay=(0.05,),
    reference="timm.optim.Lamb",
    numeric_class="exact",
    state_per_parameter=2,
    cost="element-wise, two norms for each tensor and a global one",
    notes="Norms are not clipped (the paper's phi is the identity), as in NVIDIA's version.",
)
def lamb(
    pack: Packaging,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    eps: NonNegative = 1e-6,
    max_grad_norm: Positive | None = 1.0,
    always_adapt: bool = False,
):
    """LAMB: Adam's direction, rescaled for each tensor to the size of its weights.

    u = m̂ / (sqrt(v̂) + eps) + wd p;  p <- p - lr * (|p| / |u|) u, for each tensor

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root.
      max_grad_norm: all gradients together are first scaled down to this norm; None to leave them.
      always_adapt: rescale parameters without weight decay too.
    """
    clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
    return optax.chain(
        clip,
        pack.direction(optax.scale_by_adam(b1, b2, eps)),
        pack.add_decay(),
        scale_by_trust_ratio(pack, always_adapt),
        pack.step(),
    )
