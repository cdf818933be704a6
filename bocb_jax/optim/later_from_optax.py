"""AdEMAMix and ADOPT, whose mathematics `optax.contrib` has as the references have it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Steps
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import add_row


@add_row(
    category="later",
    paper="Pagliardini, Ablin and Grangier, 2024, arXiv 2409.03137",
    decays=("decoupled",),
    default_learning_rate=5e-4,
    default_weight_decay=0.05,
    reference="pytorch_optimizer.AdEMAMix",
    numeric_class="exact",
    state_per_parameter=3,
)
def ademamix(
    pack: Packaging,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    b3: Beta = 0.9999,
    alpha: NonNegative = 5.0,
    eps: NonNegative = 1e-8,
    warmup_steps: Steps | None = None,
):
    """AdamW with a second, slow momentum.

    m, M <- means of g with decays b1, b3
    p <- p - lr * ((m̂ + alpha M) / (sqrt(v̂) + eps) + wd p)

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the fast mean.
      b2: decay of the mean square.
      b3: decay of the slow mean.
      alpha: weight of the slow mean.
      eps: added to the root.
      warmup_steps: over which alpha grows from 0 and b3 from b1; None for no warm-up.
    """
    if warmup_steps is None:
        return pack.chain(optax.contrib.scale_by_ademamix(b1, b2, b3, alpha, eps))

    def done(count):
        return jnp.minimum((count + 1.0) / warmup_steps, 1)

    def growing_b3(count):  # the half-life of the mean grows linearly
        slow, fast = np.log(b3), np.log(b1)
        return jnp.exp(slow * fast / ((1 - done(count)) * slow + done(count) * fast))

    def growing_alpha(count):
        return alpha * done(count)

    return pack.chain(optax.contrib.scale_by_ademamix(b1, b2, growing_b3, growing_alpha, eps))


def skip_first_update(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Lets the state of `inner` see the first gradient, but changes no parameter with it."""

    def init(params):
        return jnp.zeros((), jnp.int32), inner.init(params)

    def update(grads, state, params):
        count, inner_state = state
        updates, inner_state = inner.update(grads, inner_state, params)
        updates = jax.tree.map(lambda u: jnp.where(count == 0, 0, u), updates)
        return updates, (optax.safe_increment(count), inner_state)

    return optax.GradientTransformation(init, update)


@add_row(
    category="later",
    paper="Taniguchi et al., 2024, arXiv 2411.02853",
    decays=("decoupled", "l2"),
    default_learning_rate=1e-3,
    default_weight_decay=0.05,
    reference="timm.optim.Adopt",
    numeric_class="exact",
    state_per_parameter=2,
    notes="The first gradient only sets the scale.",
)
def adopt(
    pack: Packaging,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.9999,
    eps: NonNegative = 1e-6,
    clip_exponent: NonNegative = 0.25,
):
    """ADOPT: Adam that scales a gradient by the ones before it, then averages.

    u = clip(g / max(sqrt(v), eps), ±t^clip_exponent);  m <- b1 m + (1 - b1) u;  p <- p - lr m
    v <- b2 v + (1 - b2) g²,  after its use

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the mean of scaled gradients.
      b2: decay of the mean square.
      eps: least root to divide by.
      clip_exponent: how fast the bound on u opens with the count of updates t.
    """
    scale = optax.contrib.scale_by_adopt(
        b1, b2, eps, clip_value_fn=lambda count: (1.0 * count) ** clip_exponent
    )
    return skip_first_update(pack.chain(scale))
