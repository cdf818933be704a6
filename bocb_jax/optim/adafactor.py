"""Adafactor: second moments kept as one row and one column for each matrix."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import NonNegative, Positive
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import PerParam, map_leaves

ConvAxes = Literal["channels", "spatial"]


class Factors(NamedTuple):
    """Means of the squared gradient of one tensor along either of its factored axes."""

    row: jax.Array  # the tensor's shape, with length 1 on one factored axis; a vector's: its shape
    column: jax.Array | None  # likewise on the other factored axis; None for vectors


class ScaleByAdafactorState(NamedTuple):
    """State of `scale_by_adafactor`."""

    count: Any  # updates done: int32, shape ()
    factors: Any  # `Factors` for each parameter


def factored_axes(rank: int, kind: str, conv_axes: ConvAxes) -> tuple[int, int] | None:
    """Return the two axes over which a tensor is factored; None for vectors."""
    if rank < 2:
        return None
    spatial = conv_axes == "spatial" and kind in ("conv", "depthwise")
    return (0, 1) if spatial else (rank - 2, rank - 1)


def scale_by_adafactor(
    kinds: PerParam,
    *,
    decay_rate: float,
    clipping_threshold: float,
    floor: float | None,
    added: float,
    conv_axes: ConvAxes,
) -> optax.GradientTransformation:
    """Divide by the factored root mean square, then clip the root mean square of the result.

    Args:
      kinds: parameters -> tree of parameter kinds.
      decay_rate: the mean forgets at the rate t^-decay_rate.
      clipping_threshold: largest root mean square of the update of a tensor.
      floor: least root mean square; None for the machine epsilon.
      added: to the squared gradient.
      conv_axes: which axes of a convolution kernel are factored.
    """

    def init_fn(params: optax.Params) -> ScaleByAdafactorState:
        def zeros(p: jax.Array, kind: str) -> tuple[Factors]:
            axes = factored_axes(p.ndim, kind, conv_axes)
            if axes is None:
                return (Factors(jnp.zeros_like(p), None),)
            return (Factors(*(jnp.zeros_like(p.mean(a, keepdims=True)) for a in axes[::-1])),)

        (factors,) = map_leaves(zeros, params, kinds(params))
        return ScaleByAdafactorState(jnp.zeros((), jnp.int32), factors)

    def update_fn(
        updates: optax.Updates, state: ScaleByAdafactorState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdafactorState]:
        count = optax.safe_increment(state.count)
        forget = count**-decay_rate

        def move(old: jax.Array, mean: jax.Array) -> jax.Array:
            return (old + forget * (mean - old)).astype(old.dtype)

        def direction(g: jax.Array, factors: Factors, kind: str) -> tuple[jax.Array, Factors]:
            low = jnp.finfo(g.dtype).eps if floor is None else floor
            axes = factored_axes(g.ndim, kind, conv_axes)
            squares = g * g + added
            if axes is None or factors.column is None:
                factors = Factors(move(factors.row, squares), None)
                variance = factors.row
            else:
                row = move(factors.row, squares.mean(axes[1], keepdims=True))
                column = move(factors.column, squares.mean(axes[0], keepdims=True))
                factors = Factors(row, column)
                # In this order, since the product of two small means would be zero in float32.
                variance = row / jnp.maximum(row.mean(axes[0], keepdims=True), low) * column
            # The variance of gradients that are all zero may underflow, and 0 * rsqrt(0) is NaN.
            least = max(float(low) ** 2, float(jnp.finfo(g.dtype).tiny))
            u = g * jax.lax.rsqrt(jnp.maximum(variance, least))
            return u / jnp.maximum(1, root_mean_square(u) / clipping_threshold), factors

        updates, factors = map_leaves(direction, updates, state.factors, kinds(params))
        return updates, ScaleByAdafactorState(count, factors)

    return optax.GradientTransformation(init_fn, update_fn)


def root_mean_square(x: jax.Array) -> jax.Array:
    """Return the root mean square of a whole tensor, shape ()."""
    return jnp.sqrt(jnp.mean(x * x))


def scale_by_param_rms(learning_rates: PerParam, least: float) -> optax.GradientTransformation:
    """Scale by the root mean square of the parameter, and limit the rate to 1 / sqrt(t).

    The state is the count of updates: int32, shape ().

    Args:
      learning_rates: parameters -> tree of the rates by which the updates are scaled afterwards.
      least: smallest root mean square of a parameter.
    """

    def init_fn(params: optax.Params) -> jax.Array:
        del params
        return jnp.zeros((), jnp.int32)

    def update_fn(
        updates: optax.Updates, count: jax.Array, params: optax.Params | None = None
    ) -> tuple[optax.Updates, jax.Array]:
        count = optax.safe_increment(count)

        def rescale(u: jax.Array, p: jax.Array, rate: jax.Array) -> jax.Array:
            limited = jnp.minimum(1, count**-0.5 / jnp.maximum(rate, 1e-30))
            return u * jnp.maximum(least, root_mean_square(p)) * limited

        return jax.tree.map(rescale, updates, params, learning_rates(params)), count

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=1e-2,
    default_weight_decay=0.01,
    reference="torch.optim.Adafactor",
    numeric_class="exact",
    state_per_parameter=0.01,
    cost="element-wise and two means for each tensor",
    notes=(
        "PyTorch factors a convolution over its height and width, which saves next to nothing; "
        "here it is factored over its channels unless conv_axes='spatial', so kernels differ. "
        "The paper's learning rates belong to adafactor@openmixup, which has no parameter scale."
    ),
)
def adafactor(
    ctx: Context,
    *,
    decay_rate: Positive = 0.8,
    clipping_threshold: Positive = 1.0,
    eps: NonNegative | None = None,
    eps_scale: NonNegative = 1e-3,
    conv_axes: ConvAxes = "channels",
) -> optax.GradientTransformation:
    """Step in proportion to the weights, with factored second moments (Adafactor).

    R, C <- means of g² along either axis, forgetting t^-decay_rate;  u = g / sqrt(R C / mean R)
    p <- p - min(lr, 1 / sqrt(t)) * max(eps_scale, rms(p)) * u / max(1, rms(u) / threshold)

    Args:
      ctx: learning rate, weight decay and masks.
      decay_rate: the means forget at the rate t^-decay_rate.
      clipping_threshold: largest root mean square of an update, before its scaling.
      eps: least root mean square of the gradient; None for the machine epsilon.
      eps_scale: least root mean square of the weights.
      conv_axes: factor kernels over their "channels" or, as PyTorch does, the "spatial" axes.

    References:
      Shazeer and Stern, 2018, arXiv 1804.04235
    """
    scale = scale_by_adafactor(
        ctx.kinds,
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold,
        floor=eps,
        added=0.0,
        conv_axes=conv_axes,
    )
    return ctx.chain(scale, scale_by_param_rms(ctx.learning_rates, eps_scale))


@add_row(
    name="adafactor@openmixup",
    decays=("decoupled",),
    default_learning_rate=5e-4,
    default_weight_decay=0.01,
    reference="OpenMixup (fairseq's)",
    numeric_class="variant",
    state_per_parameter=0.01,
    cost="element-wise and two means for each tensor",
    notes="A 3x3 kernel keeps 0.7 numbers for each parameter.",
)
def adafactor_openmixup(
    ctx: Context, *, decay_rate: Positive = 0.8, clipping_threshold: Positive = 1.0
) -> optax.GradientTransformation:
    """Apply Adafactor as the code behind BOCB ran it: no parameter scale, no limit on the rate.

    Convolutions are factored over height and width; p <- p - lr * (u / max(1, rms(u)) + wd p).

    Args:
      ctx: learning rate, weight decay and masks.
      decay_rate: the means forget at the rate t^-decay_rate.
      clipping_threshold: largest root mean square of an update.

    References:
      Shazeer and Stern, 2018, arXiv 1804.04235; BOCB, arXiv 2410.06373
    """
    return ctx.chain(
        scale_by_adafactor(
            ctx.kinds,
            decay_rate=decay_rate,
            clipping_threshold=clipping_threshold,
            floor=0.0,
            added=1e-30,
            conv_axes="spatial",
        )
    )
