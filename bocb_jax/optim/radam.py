"""RAdam: Adam that waits until its second moment can be trusted."""

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.transforms import scale_by_moments


def rectification(
    count: jax.Array, b2: float, threshold: float = 5.0
) -> tuple[jax.Array, jax.Array]:
    """Return the rectifier of equation 5 of Liu et al., and whether it exists.

    Args:
      count: updates done, this one included; shape ().
      b2: decay of the mean of squares.
      threshold: shortest length of the approximated average that has a variance.

    Returns:
      (r, tractable), shape () each; r means nothing where it is not tractable.
    """
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * count * b2**count / (1 - b2**count)
    safe = jnp.maximum(length, 4.5)
    ratio = (safe - 4) * (safe - 2) * longest / ((longest - 4) * (longest - 2) * safe)
    return jnp.sqrt(ratio), length > threshold


def scale_by_radam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Rescale updates according to RAdam; see `radam`. The state is Adam's."""

    def direction(count: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        rectifier, tractable = rectification(count, b2)
        adaptive = rectifier * jnp.sqrt(1 - b2**count) / (jnp.sqrt(v) + eps)
        return m / (1 - b1**count) * jnp.where(tractable, adaptive, 1.0)

    return scale_by_moments(b1, b2, direction)


@add_row(
    decays=("l2", "decoupled"),
    default_learning_rate=1e-3,
    reference="torch.optim.RAdam",
    numeric_class="exact",
    state_per_parameter=2,
    notes="Decay is L2 as in PyTorch, which BOCB ran; the authors' own code decouples it.",
)
def radam(
    ctx: Context, *, b1: Beta = 0.9, b2: Beta = 0.999, eps: NonNegative = 1e-8
) -> optax.GradientTransformation:
    """Use Adam's second moment only once it can be trusted (rectified Adam).

    While the mean of squares rests on too few steps, p <- p - lr * m̂; from then on
    p <- p - lr * r * sqrt(1 - b2^t) * m̂ / (sqrt(v) + eps), r growing to 1.

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root.

    References:
      Liu et al., 2020, arXiv 1908.03265
    """
    return ctx.chain(scale_by_radam(b1, b2, eps))
