"""LARS: SGD with momentum whose rate follows, for each layer, the norm of its weights."""

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Positive
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import PerParam


def scale_by_lars(
    weight_decay: float | jax.Array,
    mask: PerParam,
    *,
    trust_coefficient: float,
    eps: float,
    always_adapt: bool,
) -> optax.GradientTransformation:
    """Scale g + wd p by the trust ratio of LARS; see `lars`.

    Args:
      weight_decay: coefficient, shape ().
      mask: parameters -> tree of booleans: where decay applies.
      trust_coefficient: size of a step over the size of the weights.
      eps: added to the denominator.
      always_adapt: rescale parameters without weight decay too.
    """

    def rescale(g: jax.Array, p: jax.Array, decayed: bool) -> jax.Array:
        if not (decayed or always_adapt):
            return g
        wd = weight_decay if decayed else 0.0
        p_norm, g_norm = optax.tree.norm(p), optax.tree.norm(g)
        usable = (p_norm > 0) & (g_norm > 0)
        if not always_adapt:
            usable &= weight_decay != 0
        below = jnp.where(usable, g_norm + wd * p_norm + eps, 1)
        return jnp.where(usable, trust_coefficient * p_norm / below, 1) * (g + wd * p)

    def update_fn(updates: optax.Updates, params: optax.Params) -> optax.Updates:
        return jax.tree.map(rescale, updates, params, mask(params))

    return optax.stateless(update_fn)


def scale_by_unguarded_lars(
    weight_decay: float | jax.Array, mask: PerParam, trust_coefficient: float
) -> optax.GradientTransformation:
    """Scale g + wd p, for every tensor, by a trust ratio that is 0 where p is 0."""

    def rescale(g: jax.Array, p: jax.Array, decayed: bool) -> jax.Array:
        wd = weight_decay if decayed else 0.0
        p_norm, g_norm = optax.tree.norm(p), optax.tree.norm(g)
        below = g_norm + wd * p_norm
        ratio = trust_coefficient * p_norm / jnp.where(below > 0, below, 1)
        return ratio * (g + wd * p)

    def update_fn(updates: optax.Updates, params: optax.Params) -> optax.Updates:
        return jax.tree.map(rescale, updates, params, mask(params))

    return optax.stateless(update_fn)


@add_row(
    decays=("l2",),
    default_learning_rate=1.2,
    default_weight_decay=1e-6,
    reference="timm.optim.Lars",
    numeric_class="exact",
    state_per_parameter=1,
    cost="element-wise and two norms for each tensor",
    notes=(
        "Optax's lars divides by |g + wd p| and has the learning rate inside the momentum. "
        "Biases, norms and tokens take plain SGD steps; at this learning rate transformers do not "
        "train with them."
    ),
)
def lars(
    ctx: Context,
    *,
    momentum: Beta = 0.9,
    nesterov: bool = False,
    trust_coefficient: Positive = 1e-3,
    eps: NonNegative = 1e-8,
    always_adapt: bool = False,
) -> optax.GradientTransformation:
    """Scale the gradient, for each tensor, to the norm of its weights, then add momentum (LARS).

    r = trust_coefficient |p| / (|g| + wd |p| + eps), 1 where a norm is 0, for each tensor
    m <- momentum m + r (g + wd p);  p <- p - lr * m

    Args:
      ctx: learning rate, weight decay and masks.
      momentum: decay of the momentum; 0 for none.
      nesterov: look ahead along the momentum.
      trust_coefficient: size of a step over the size of the weights.
      eps: added to the denominator.
      always_adapt: rescale parameters without weight decay too.

    References:
      You, Gitman and Ginsburg, 2017, arXiv 1708.03888
    """
    rescale = scale_by_lars(
        ctx.weight_decay,
        ctx.mask,
        trust_coefficient=trust_coefficient,
        eps=eps,
        always_adapt=always_adapt,
    )
    trace = optax.trace(momentum, nesterov) if momentum else optax.identity()
    return optax.chain(rescale, trace, ctx.scale_by_learning_rate())


@add_row(
    name="lars@openmixup",
    decays=("l2",),
    default_learning_rate=1.2,
    default_weight_decay=1e-6,
    reference="OpenMixup before June 2024",
    numeric_class="variant",
    state_per_parameter=1,
    cost="element-wise and two norms for each tensor",
    notes=(
        "As BOCB's tables were made: no guard, so tensors that start at zero never move. "
        "The later release fixes the ratio at 1 unless asked."
    ),
)
def lars_openmixup(
    ctx: Context,
    *,
    momentum: Beta = 0.9,
    trust_coefficient: Positive = 1e-3,
) -> optax.GradientTransformation:
    """Apply LARS as the code behind BOCB ran it.

    r = trust_coefficient |p| / (|g| + wd |p|), for every tensor, 0 where p is 0
    m <- momentum m + lr * r (g + wd p);  p <- p - m

    Args:
      ctx: learning rate, weight decay and masks.
      momentum: decay of the momentum; the learning rate is inside it.
      trust_coefficient: size of a step over the size of the weights.

    References:
      You, Gitman and Ginsburg, 2017, arXiv 1708.03888; BOCB, arXiv 2410.06373
    """
    rescale = scale_by_unguarded_lars(ctx.weight_decay, ctx.mask, trust_coefficient)
    return optax.chain(rescale, ctx.scale_by_learning_rate(), optax.trace(momentum))
