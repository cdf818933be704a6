"""Schedule-free SGD and AdamW: an average of iterates in place of a decaying learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Positive
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.injected import OptimizerState
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import map_leaves


class ScheduleFreeState(NamedTuple):
    """The parameters themselves are y, where gradients are taken."""

    count: jax.Array  # int32, shape ()
    weight_sum: jax.Array  # of the average, shape ()
    largest_rate: jax.Array  # learning rate so far, shape ()
    b1: jax.Array  # y = (1 - b1) z + b1 x, shape ()
    z: Any  # the plain iterate
    base_state: Any


def schedule_free(
    pack: Packaging, base: optax.GradientTransformation, b1: float, lr_power: float
) -> optax.GradientTransformation:
    """Averages the iterates of `base`, a direction without momentum."""

    def init(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))
        zero = jnp.zeros((), dtype)
        z = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # no alias of what is donated
        count = jnp.zeros((), jnp.int32)
        return ScheduleFreeState(count, zero, zero, zero + b1, z, base.init(params))

    def update(grads, state, params):
        direction, base_state = base.update(grads, state.base_state, params)
        direction, _ = pack.add_decay().update(direction, optax.EmptyState(), params)
        largest = jnp.maximum(pack.learning_rate, state.largest_rate)
        weight = largest**lr_power
        total = state.weight_sum + weight
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)

        def change(y, z, u, rate):
            z = z - rate * u  # y moves in terms of the new z, so that both can change in place
            return share * (z - y) - rate * (1 - share) * (1 - b1) * u, z

        updates, z = map_leaves(change, params, state.z, direction, pack.rates(params))
        count = optax.safe_increment(state.count)
        return updates, ScheduleFreeState(count, total, largest, state.b1, z, base_state)

    return optax.GradientTransformation(init, update)


def averaged_parameters(state: OptimizerState, params: Any) -> Any:
    """x, the parameters to evaluate and keep, from y, those that are trained.

    Running statistics of a BatchNorm belong to y: recompute them for x before evaluating.
    """
    inner = state.inner_state
    return jax.tree.map(
        lambda y, z: (y / inner.b1 + (1 - 1 / inner.b1) * z).astype(y.dtype), params, inner.z
    )


SHARED = {
    "category": "later",
    "paper": "Defazio et al., 2024, The Road Less Scheduled, arXiv 2405.15682",
    "decays": ("decoupled",),
    "default_schedule": "constant",
    "numeric_class": "exact",
    "evaluation_parameters": averaged_parameters,
    "notes": "Evaluated at x.",
}


@add_row(
    default_learning_rate=1.0,
    default_weight_decay=1e-4,
    reference="schedulefree.SGDScheduleFree",
    state_per_parameter=1,
    **SHARED,
)
def schedule_free_sgd(pack: Packaging, *, b1: Positive = 0.9, lr_power: NonNegative = 2.0):
    """Schedule-free SGD: answers with an average of its iterates.

    z <- z - lr (g(y) + wd y);  x <- (1 - c) x + c z;  y = (1 - b1) z + b1 x
    c = lr_max^lr_power over the sum of all so far: the plain mean at a constant rate

    Args:
      pack: learning rate, weight decay and masks.
      b1: share of the average x in y, where gradients are taken; in (0, 1).
      lr_power: how much an iterate of a higher learning rate weighs.
    """
    return schedule_free(pack, optax.identity(), b1, lr_power)


@add_row(
    default_learning_rate=2.5e-3,
    default_weight_decay=0.05,
    reference="schedulefree.AdamWScheduleFree",
    state_per_parameter=2,
    **SHARED,
)
def schedule_free_adamw(
    pack: Packaging,
    *,
    b1: Positive = 0.9,
    b2: Beta = 0.999,
    eps: NonNegative = 1e-8,
    lr_power: NonNegative = 2.0,
):
    """Schedule-free AdamW: answers with an average of its iterates.

    z <- z - lr (g(y) / (sqrt(v̂) + eps) + wd y);  x <- (1 - c) x + c z;  y = (1 - b1) z + b1 x
    c = lr_max^lr_power over the sum of all so far: the plain mean at a constant rate

    Args:
      pack: learning rate, weight decay and masks.
      b1: share of the average x in y, where gradients are taken; in (0, 1).
      b2: decay of the mean square of the gradient.
      eps: added to the root.
      lr_power: how much an iterate of a higher learning rate weighs.
    """
    base = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    return schedule_free(pack, base, b1, lr_power)
