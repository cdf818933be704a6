"""AdEMAMix and ADOPT, whose mathematics is that of `optax.contrib`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Steps
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.transforms import skip_first_update


@add_row(
    decays=("decoupled",),
    default_learning_rate=5e-4,
    default_weight_decay=0.05,
    reference="pytorch_optimizer.AdEMAMix",
    numeric_class="exact",
    state_per_parameter=3,
)
def ademamix(
    ctx: Context,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    b3: Beta = 0.9999,
    alpha: NonNegative = 5.0,
    eps: NonNegative = 1e-8,
    warmup_steps: Steps | None = None,
) -> optax.GradientTransformation:
    """Add a second, slow momentum to AdamW (AdEMAMix).

    m, M <- means of g with decays b1, b3
    p <- p - lr * ((m̂ + alpha M) / (sqrt(v̂) + eps) + wd p)

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the fast mean.
      b2: decay of the mean square.
      b3: decay of the slow mean.
      alpha: weight of the slow mean.
      eps: added to the root.
      warmup_steps: over which alpha grows from 0 and b3 from b1; None for no warm-up.

    References:
      Pagliardini, Ablin and Grangier, 2024, arXiv 2409.03137
    """
    if warmup_steps is None:
        return ctx.chain(optax.contrib.scale_by_ademamix(b1, b2, b3, alpha, eps))

    def done(count: jax.Array) -> jax.Array:
        return jnp.minimum((count + 1.0) / warmup_steps, 1)

    def growing_b3(count: jax.Array) -> jax.Array:  # the half-life of the mean grows linearly
        slow, fast = np.log(b3), np.log(b1)
        return jnp.exp(slow * fast / ((1 - done(count)) * slow + done(count) * fast))

    def growing_alpha(count: jax.Array) -> jax.Array:
        return alpha * done(count)

    return ctx.chain(optax.contrib.scale_by_ademamix(b1, b2, growing_b3, growing_alpha, eps))


@add_row(
    decays=("decoupled", "l2"),
    default_learning_rate=1e-3,
    default_weight_decay=0.05,
    reference="timm.optim.Adopt",
    numeric_class="exact",
    state_per_parameter=2,
    notes="The first gradient only sets the scale.",
)
def adopt(
    ctx: Context,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.9999,
    eps: NonNegative = 1e-6,
    clip_exponent: NonNegative = 0.25,
) -> optax.GradientTransformation:
    """Scale each gradient by the ones before it, then average (ADOPT).

    u = clip(g / max(sqrt(v), eps), ±t^clip_exponent);  m <- b1 m + (1 - b1) u;  p <- p - lr m
    v <- b2 v + (1 - b2) g²,  after its use

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of scaled gradients.
      b2: decay of the mean square.
      eps: least root to divide by.
      clip_exponent: how fast the bound on u opens with the count of updates t.

    References:
      Taniguchi et al., 2024, arXiv 2411.02853
    """
    scale = optax.contrib.scale_by_adopt(
        b1, b2, eps, clip_value_fn=lambda count: (1.0 * count) ** clip_exponent
    )
    return skip_first_update(ctx.chain(scale))
