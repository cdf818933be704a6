"""LARS: SGD with momentum whose rate follows, for each layer, the norm of its weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Positive
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import add_row


def _for_each_tensor(
    pack: Packaging, change: Callable[[Any, Any, bool], Any]
) -> optax.GradientTransformation:
    def update(grads, params):
        return jax.tree.map(change, grads, params, pack.mask(params))

    return optax.stateless(update)


@add_row(
    category="c",
    paper="You, Gitman and Ginsburg, 2017, arXiv 1708.03888",
    decays=("l2",),
    default_learning_rate=1.2,
    default_weight_decay=1e-6,
    paper_learning_rate=(1.2,),
    paper_weight_decay=(1e-6,),
    reference="timm.optim.Lars",
    numeric_class="exact",
    state_per_parameter=1,
    cost="element-wise and two norms for each tensor",
    notes=(
        "Optax's lars divides by |g + wd p| and has the learning rate inside the momentum. "
        "Biases, norms and tokens take plain SGD steps, which transformers do not bear at this "
        "learning rate."
    ),
)
def lars(
    pack: Packaging,
    *,
    momentum: Beta = 0.9,
    nesterov: bool = False,
    trust_coefficient: Positive = 1e-3,
    eps: NonNegative = 1e-8,
    always_adapt: bool = False,
):
    """LARS, the layer-wise adaptive rate scaling.

    r = trust_coefficient |p| / (|g| + wd |p| + eps), 1 where a norm is 0, for each tensor
    m <- momentum m + r (g + wd p);  p <- p - lr * m

    Args:
      pack: learning rate, weight decay and masks.
      momentum: decay of the momentum.
      nesterov: look ahead along the momentum.
      trust_coefficient: size of a step over the size of the weights.
      eps: added to the denominator.
      always_adapt: rescale parameters without weight decay too.
    """

    def rescale(g, p, decayed):
        if not (decayed or always_adapt):
            return g
        wd = pack.weight_decay if decayed else 0.0
        p_norm, g_norm = optax.tree.norm(p), optax.tree.norm(g)
        usable = (p_norm > 0) & (g_norm > 0)
        if not always_adapt:
            usable &= pack.weight_decay != 0
        below = jnp.where(usable, g_norm + wd * p_norm + eps, 1)
        return jnp.where(usable, trust_coefficient * p_norm / below, 1) * (g + wd * p)

    momentum_part = optax.trace(momentum, nesterov) if momentum else optax.identity()
    return optax.chain(_for_each_tensor(pack, rescale), momentum_part, pack.step())


@add_row(
    name="lars@openmixup",
    category="c",
    paper="You, Gitman and Ginsburg, 2017, arXiv 1708.03888; BOCB, arXiv 2410.06373",
    decays=("l2",),
    default_learning_rate=1.2,
    default_weight_decay=1e-6,
    paper_learning_rate=(1.2,),
    paper_weight_decay=(1e-6,),
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
    pack: Packaging,
    *,
    momentum: Beta = 0.9,
    trust_coefficient: Positive = 1e-3,
):
    """LARS as the code behind BOCB ran it.

    r = trust_coefficient |p| / (|g| + wd |p|), for every tensor, 0 where p is 0
    m <- momentum m + lr * r (g + wd p);  p <- p - m

    Args:
      pack: learning rate, weight decay and masks.
      momentum: decay of the momentum; the learning rate is inside it.
      trust_coefficient: size of a step over the size of the weights.
    """

    def rescale(g, p, decayed):
        wd = pack.weight_decay if decayed else 0.0
        p_norm, g_norm = optax.tree.norm(p), optax.tree.norm(g)
        below = g_norm + wd * p_norm
        ratio = trust_coefficient * p_norm / jnp.where(below > 0, below, 1)
        return ratio * (g + wd * p)

    return optax.chain(_for_each_tensor(pack, rescale), pack.step(), optax.trace(momentum))
