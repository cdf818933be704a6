"""Adafactor: second moments kept as one row and one column for each matrix."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import NonNegative, Positive
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import map_leaves

ConvAxes = Literal["channels", "spatial"]


class Factors(NamedTuple):
    """Means of the squared gradient of one tensor along either axis; a vector's is in `row`."""

    row: jax.Array
    column: jax.Array | None


class AdafactorState(NamedTuple):
    """For each tensor its factors."""

    count: jax.Array  # int32, shape ()
    factors: Any


def factored_axes(rank: int, kind: str, conv_axes: ConvAxes) -> tuple[int, int] | None:
    """The two axes over which a tensor is factored, or None for vectors."""
    if rank < 2:
        return None
    spatial = conv_axes == "spatial" and kind in ("conv", "depthwise")
    return (0, 1) if spatial else (rank - 2, rank - 1)


def scale_by_adafactor(
    pack: Packaging,
    *,
    decay_rate: float,
    clipping_threshold: float,
    floor: float | None,
    added: float,
    conv_axes: ConvAxes,
) -> optax.GradientTransformation:
    """Divides by the factored root mean square, then clips the root mean square of the result.

    Args:
      pack: tells the kinds of parameters.
      decay_rate: the mean forgets at the rate t^-decay_rate.
      clipping_threshold: largest root mean square of the update of a tensor.
      floor: least root mean square; None for the machine epsilon.
      added: to the squared gradient.
      conv_axes: which axes of a convolution kernel are factored.
    """

    def init(params):
        def zeros(p, kind):
            axes = factored_axes(p.ndim, kind, conv_axes)
            if axes is None:
                return (Factors(jnp.zeros_like(p), None),)
            return (Factors(*(jnp.zeros_like(p.mean(a, keepdims=True)) for a in axes[::-1])),)

        (factors,) = map_leaves(zeros, params, pack.kinds(params))
        return AdafactorState(jnp.zeros((), jnp.int32), factors)

    def update(grads, state, params):
        count = optax.safe_increment(state.count)
        forget = count**-decay_rate

        def move(old, mean):
            return (old + forget * (mean - old)).astype(old.dtype)

        def direction(g, factors, kind):
            low = jnp.finfo(g.dtype).eps if floor is None else floor
            axes = factored_axes(g.ndim, kind, conv_axes)
            squares = g * g + added
            if axes is None:
                factors = Factors(move(factors.row, squares), None)
                variance = factors.row
            else:
                row = move(factors.row, squares.mean(axes[1], keepdims=True))
                column = move(factors.column, squares.mean(axes[0], keepdims=True))
                factors = Factors(row, column)
                # In this order, since the product of two small means would be zero in float32.
                variance = row / jnp.maximum(row.mean(axes[0], keepdims=True), low) * column
            u = g * jax.lax.rsqrt(jnp.maximum(variance, low**2))
            return u / jnp.maximum(1, root_mean_square(u) / clipping_threshold), factors

        updates, factors = map_leaves(direction, grads, state.factors, pack.kinds(params))
        return updates, AdafactorState(count, factors)

    return optax.GradientTransformation(init, update)


def root_mean_square(x: jax.Array) -> jax.Array:
    """Of all numbers of a tensor; shape ()."""
    return jnp.sqrt(jnp.mean(x * x))


def scale_by_parameter(pack: Packaging, least: float) -> optax.GradientTransformation:
    """Times the root mean square of the parameter, and a rate of at most 1 / sqrt(t)."""

    def init(params):
        return jnp.zeros((), jnp.int32)

    def update(updates, count, params):
        count = optax.safe_increment(count)

        def rescale(u, p, rate):
            limited = jnp.minimum(1, count**-0.5 / jnp.maximum(rate, 1e-30))
            return u * jnp.maximum(least, root_mean_square(p)) * limited

        return jax.tree.map(rescale, updates, params, pack.rates(params)), count

    return optax.GradientTransformation(init, update)


@add_row(
    category="c",
    paper="Shazeer and Stern, 2018, arXiv 1804.04235",
    decays=("decoupled",),
    default_learning_rate=1e-2,
    default_weight_decay=0.01,
    paper_learning_rate=(5e-4,),
    paper_weight_decay=(0.01,),
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
    pack: Packaging,
    *,
    decay_rate: Positive = 0.8,
    clipping_threshold: Positive = 1.0,
    eps: NonNegative | None = None,
    eps_scale: NonNegative = 1e-3,
    conv_axes: ConvAxes = "channels",
):
    """Adafactor: steps in proportion to the weights, and hardly any state.

    R, C <- means of g² along either axis, forgetting t^-decay_rate;  u = g / sqrt(R C / mean R)
    p <- p - min(lr, 1 / sqrt(t)) * max(eps_scale, rms(p)) * u / max(1, rms(u) / threshold)

    Args:
      pack: learning rate, weight decay and masks.
      decay_rate: the means forget at the rate t^-decay_rate.
      clipping_threshold: largest root mean square of an update, before its scaling.
      eps: least root mean square of the gradient; None for the machine epsilon.
      eps_scale: least root mean square of the weights.
      conv_axes: factor kernels over their "channels" or, as PyTorch does, the "spatial" axes.
    """
    scale = scale_by_adafactor(
        pack,
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold,
        floor=eps,
        added=0.0,
        conv_axes=conv_axes,
    )
    return pack.chain(scale, scale_by_parameter(pack, eps_scale))


@add_row(
    name="adafactor@openmixup",
    category="c",
    paper="Shazeer and Stern, 2018, arXiv 1804.04235; BOCB, arXiv 2410.06373",
    decays=("decoupled",),
    default_learning_rate=5e-4,
    default_weight_decay=0.01,
    paper_learning_rate=(5e-4,),
    paper_weight_decay=(0.01,),
    reference="OpenMixup (fairseq's)",
    numeric_class="variant",
    state_per_parameter=0.01,
    cost="element-wise and two means for each tensor",
    notes="A 3x3 kernel keeps 0.7 numbers for each parameter.",
)
def adafactor_openmixup(
    pack: Packaging, *, decay_rate: Positive = 0.8, clipping_threshold: Positive = 1.0
):
    """Adafactor as the code behind BOCB ran it: a plain learning rate, no parameter scale.

    Convolutions are factored over height and width; p <- p - lr * (u / max(1, rms(u)) + wd p).

    Args:
      pack: learning rate, weight decay and masks.
      decay_rate: the means forget at the rate t^-decay_rate.
      clipping_threshold: largest root mean square of an update.
    """
    return pack.chain(
        scale_by_adafactor(
            pack,
            decay_rate=decay_rate,
            clipping_threshold=clipping_threshold,
            floor=0.0,
            added=1e-30,
            conv_axes="spatial",
        )
    )
