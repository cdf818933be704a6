"""LAMB: Adam's direction, rescaled for each layer to the norm of its weights."""

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Positive
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import PerParam


def scale_by_trust_ratio(
    weight_decay: float | jax.Array, mask: PerParam, always_adapt: bool
) -> optax.GradientTransformation:
    """Scale updates by the trust ratio: u <- u |p| / |u|, for each tensor.

    The ratio is 1 where either norm is 0 and, unless `always_adapt`, for parameters without weight
    decay.

    Args:
      weight_decay: coefficient, shape (); only whether it is 0 is used.
      mask: parameters -> tree of booleans: where decay applies.
      always_adapt: rescale parameters without weight decay too.
    """

    def rescale(u: jax.Array, p: jax.Array, decayed: bool) -> jax.Array:
        if not (decayed or always_adapt):
            return u
        p_norm, u_norm = optax.tree.norm(p), optax.tree.norm(u)
        usable = (p_norm > 0) & (u_norm > 0)
        if not always_adapt:
            usable &= weight_decay != 0
        return u * jnp.where(usable, p_norm / jnp.where(usable, u_norm, 1), 1)

    def update_fn(updates: optax.Updates, params: optax.Params) -> optax.Updates:
        return jax.tree.map(rescale, updates, params, mask(params))

    return optax.stateless(update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=5e-3,
    default_weight_decay=0.05,
    reference="timm.optim.Lamb",
    numeric_class="exact",
    state_per_parameter=2,
    cost="element-wise, two norms for each tensor and a global one",
    notes="The norm of the weights enters as it is (the phi of You et al. is the identity), as in "
    "NVIDIA's version.",
)
def lamb(
    ctx: Context,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    eps: NonNegative = 1e-6,
    max_grad_norm: Positive | None = 1.0,
    always_adapt: bool = False,
) -> optax.GradientTransformation:
    """Rescale AdamW's direction, for each tensor, to the norm of its weights (LAMB).

    u = m̂ / (sqrt(v̂) + eps) + wd p;  p <- p - lr * r u, for each tensor
    r = |p| / |u| where p is decayed, else 1 (`always_adapt`: |p| / |u| everywhere)

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root.
      max_grad_norm: clip the global norm of the gradient to this first; None for no clipping.
      always_adapt: rescale parameters without weight decay too.

    References:
      You et al., 2020, arXiv 1904.00962
    """
    clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
    return optax.chain(
        clip,
        ctx.direction(optax.scale_by_adam(b1, b2, eps)),
        ctx.add_decayed_weights(),
        scale_by_trust_ratio(ctx.weight_decay, ctx.mask, always_adapt),
        ctx.scale_by_learning_rate(),
    )
