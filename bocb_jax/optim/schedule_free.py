"""Schedule-free SGD and AdamW: an average of iterates in place of a decaying learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Positive
from bocb_jax.optim.context import Context
from bocb_jax.optim.injected import OptimizerState
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.transforms import add_decayed_weights
from bocb_jax.optim.trees import PerParam, map_leaves


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free`; the parameters themselves are y, where gradients are taken."""

    count: Any  # updates done: int32, shape ()
    weight_sum: jax.Array  # of the average x so far, shape ()
    largest_rate: jax.Array  # largest learning rate so far, shape ()
    b1: jax.Array  # y = (1 - b1) z + b1 x, shape ()
    z: optax.Params  # the iterate that is stepped; shapes of the parameters
    base_state: optax.OptState


def schedule_free(
    base: optax.GradientTransformation,
    learning_rate: float | jax.Array,
    learning_rates: PerParam,
    *,
    b1: float,
    lr_power: float,
    weight_decay: float | jax.Array,
    mask: PerParam,
) -> optax.GradientTransformation:
    """Average the iterates of a transformation without momentum.

    Args:
      base: makes the direction from the gradient.
      learning_rate: of this update, shape (); decides the weight of its iterate in the average.
      learning_rates: parameters -> tree of learning rates, multipliers included.
      b1: share of the average x in y.
      lr_power: power of the learning rate that weights an iterate.
      weight_decay: coefficient, shape ().
      mask: parameters -> tree of booleans: where decay applies.
    """
    add_decay = add_decayed_weights(weight_decay, mask)

    def init_fn(params: optax.Params) -> ScheduleFreeState:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        zero = jnp.zeros((), dtype)
        z = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # no alias of what is donated
        count = jnp.zeros((), jnp.int32)
        return ScheduleFreeState(count, zero, zero, zero + b1, z, base.init(params))

    def update_fn(
        updates: optax.Updates, state: ScheduleFreeState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScheduleFreeState]:
        direction, base_state = base.update(updates, state.base_state, params)
        direction, _ = add_decay.update(direction, optax.EmptyState(), params)
        largest = jnp.maximum(learning_rate, state.largest_rate)
        weight = largest**lr_power
        total = state.weight_sum + weight
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)

        def change(
            y: jax.Array, z: jax.Array, u: jax.Array, rate: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            z = z - rate * u  # y moves in terms of the new z, so that both can change in place
            return share * (z - y) - rate * (1 - share) * (1 - b1) * u, z

        updates, z = map_leaves(change, params, state.z, direction, learning_rates(params))
        count = optax.safe_increment(state.count)
        return updates, ScheduleFreeState(count, total, largest, state.b1, z, base_state)

    return optax.GradientTransformation(init_fn, update_fn)


def averaged_parameters(state: OptimizerState, params: optax.Params) -> optax.Params:
    """Return x, the parameters to evaluate and keep, from y, those that are trained.

    Running statistics of a BatchNorm belong to y: recompute them for x before evaluating.
    """
    inner = state.inner_state
    return jax.tree.map(
        lambda y, z: (y / inner.b1 + (1 - 1 / inner.b1) * z).astype(y.dtype), params, inner.z
    )


@add_row(
    decays=("decoupled",),
    default_learning_rate=1.0,
    default_weight_decay=1e-4,
    default_schedule="constant",
    reference="schedulefree.SGDScheduleFree",
    numeric_class="exact",
    state_per_parameter=1,
    evaluation_parameters=averaged_parameters,
    notes="Evaluated at x.",
)
def schedule_free_sgd(
    ctx: Context, *, b1: Positive = 0.9, lr_power: NonNegative = 2.0
) -> optax.GradientTransformation:
    """Evaluate SGD at an average of its iterates, without a schedule (schedule-free SGD).

    z <- z - lr (g(y) + wd y);  x <- (1 - c) x + c z;  y = (1 - b1) z + b1 x
    c = lr_max^lr_power over the sum of all so far: the plain mean at a constant rate

    Args:
      ctx: learning rate, weight decay and masks.
      b1: share of the average x in y, where gradients are taken; in (0, 1).
      lr_power: how much an iterate of a higher learning rate weighs.

    References:
      Defazio et al., 2024, The Road Less Scheduled, arXiv 2405.15682
    """
    return schedule_free(
        optax.identity(),
        ctx.learning_rate,
        ctx.learning_rates,
        b1=b1,
        lr_power=lr_power,
        weight_decay=ctx.weight_decay,
        mask=ctx.mask,
    )


@add_row(
    decays=("decoupled",),
    default_learning_rate=2.5e-3,
    default_weight_decay=0.05,
    default_schedule="constant",
    reference="schedulefree.AdamWScheduleFree",
    numeric_class="exact",
    state_per_parameter=2,
    evaluation_parameters=averaged_parameters,
    notes="Evaluated at x.",
)
def schedule_free_adamw(
    ctx: Context,
    *,
    b1: Positive = 0.9,
    b2: Beta = 0.999,
    eps: NonNegative = 1e-8,
    lr_power: NonNegative = 2.0,
) -> optax.GradientTransformation:
    """Evaluate AdamW at an average of its iterates, without a schedule (schedule-free AdamW).

    z <- z - lr (g(y) / (sqrt(v̂) + eps) + wd y);  x <- (1 - c) x + c z;  y = (1 - b1) z + b1 x
    c = lr_max^lr_power over the sum of all so far: the plain mean at a constant rate

    Args:
      ctx: learning rate, weight decay and masks.
      b1: share of the average x in y, where gradients are taken; in (0, 1).
      b2: decay of the mean square of the gradient.
      eps: added to the root.
      lr_power: how much an iterate of a higher learning rate weighs.

    References:
      Defazio et al., 2024, The Road Less Scheduled, arXiv 2405.15682
    """
    return schedule_free(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        ctx.learning_rate,
        ctx.learning_rates,
        b1=b1,
        lr_power=lr_power,
        weight_decay=ctx.weight_decay,
        mask=ctx.mask,
    )
