"""AdaBound: Adam whose rates are squeezed towards that of SGD."""

import jax
import jax.numpy as jnp
import optax

from bocb_jax.errors import UserError
from bocb_jax.optim.bounds import Beta, NonNegative, Positive
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.transforms import scale_by_moments


def scale_by_adabound(
    b1: float, b2: float, eps: float, relative_final_lr: float | jax.Array, gamma: float
) -> optax.GradientTransformation:
    """Rescale updates according to AdaBound, in units of the learning rate.

    Args:
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root.
      relative_final_lr: final rate over base rate, shape ().
      gamma: how fast the bounds close.
    """

    def direction(count: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        lower = relative_final_lr * (1 - 1 / (gamma * count + 1))
        upper = relative_final_lr * (1 + 1 / (gamma * count))
        size = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        return jnp.clip(size / (jnp.sqrt(v) + eps), lower, upper) * m

    return scale_by_moments(b1, b2, direction)


@add_row(
    decays=("l2", "decoupled"),
    default_learning_rate=5e-4,
    default_weight_decay=1e-4,
    reference="pytorch_optimizer.AdaBound",
    numeric_class="eps-level",
    state_per_parameter=2,
)
def adabound(
    ctx: Context,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    eps: NonNegative = 1e-8,
    final_lr: Positive = 0.1,
    gamma: Positive = 1e-3,
    base_learning_rate: Positive | None = None,
) -> optax.GradientTransformation:
    """Squeeze the rates of Adam into a narrowing band (AdaBound).

    rate = clip(lr * sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + eps), low, high);  p <- p - rate * m
    low, high = final_lr * lr / base * (1 - 1 / (gamma t + 1), 1 + 1 / (gamma t))

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root.
      final_lr: rate that the bounds close upon, while the schedule is at its peak.
      gamma: how fast they close.
      base_learning_rate: rate that the schedule is relative to; None for its peak.

    Raises:
      UserError: the base is neither given nor known from the schedule.

    References:
      Luo et al., 2019, arXiv 1902.09843
    """
    base = base_learning_rate or ctx.peak_learning_rate
    if base is None:
        raise UserError(
            "adabound sets its bounds relative to the peak of the schedule, which an Optax "
            "schedule does not tell: pass base_learning_rate, or one of bocb_jax.optim.schedules."
        )
    return ctx.chain(scale_by_adabound(b1, b2, eps, final_lr / base, gamma))
