"""Mixup and CutMix: each image of a batch is mixed with another one, and so are their labels."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from bocb_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How batches are mixed: with one method and one ratio for the whole batch, as in timm.

    Attributes:
      mixup: alpha of Mixup's beta distribution (Zhang et al., 2017, arXiv 1710.09412); 0 for no
        Mixup.
      cutmix: alpha of CutMix's beta distribution (Yun et al., 2019, arXiv 1905.04899); 0 for no
        CutMix.
      probability: probability that a batch is mixed at all.
      switch: probability of CutMix where both are used.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5

    def __post_init__(self):
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"The alpha of {name} must be a finite number that is not negative; it is "
                    f"{getattr(self, name)}."
                )
        for name in ("probability", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"mixing.{name} must lie in 0 ... 1; it is {getattr(self, name)}.")

    @property
    def active(self) -> bool:
        """Return whether any batch is ever mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


def smoothed_one_hot(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Return one-hot targets with `smoothing` spread evenly over all classes.

    Mixed afterwards, these are the targets of timm's Mixup.

    Args:
      labels: (B,) integers.
      num_classes: number of classes.
      smoothing: probability that is spread.

    Returns:
      (B, num_classes) float32.
    """
    on_and_off = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return on_and_off * (1 - smoothing) + smoothing / num_classes


def mix(
    images: jax.Array, targets: jax.Array, *, key: jax.Array, policy: Mixing
) -> tuple[jax.Array, jax.Array]:
    """Mix each example with the one at its position in the reversed batch.

    The first example is mixed with the last one of the global batch, whichever devices hold them.

    Args:
      images: (B, H, W, C) float.
      targets: (B, num_classes), each row summing to 1.
      key: PRNG key of the step.
      policy: static under `jax.jit`.

    Returns:
      Images and targets of the same shapes.
    """
    if not policy.active:
        return images, targets
    _, height, width, _ = images.shape
    weights, ratio = pixel_weights(key, (height, width), policy)
    return _mix_reversed(weights[None, :, :, None], images), _mix_reversed(ratio, targets)


def _mix_reversed(weight: jax.Array, x: jax.Array) -> jax.Array:
    # The products are rounded to one bit less than float32 has: the compiler may or may not fuse a
    # product with the sum after it, depending on how it divides the work, and round differently.
    own, other = (
        lax.reduce_precision(part, exponent_bits=8, mantissa_bits=22)
        for part in (weight * x, (1 - weight) * x[::-1])
    )
    return own + other


def pixel_weights(
    key: jax.Array, size: tuple[int, int], policy: Mixing
) -> tuple[jax.Array, jax.Array]:
    """Draw the weight of each pixel's own image, and its mean, the weight of the own label.

    Args:
      key: PRNG key of the step.
      size: height and width of the images.
      policy: static under `jax.jit`.

    Returns:
      (H, W) and () float32, in 0 ... 1.
    """
    do, switch, mixup, cutmix, corner = jax.random.split(key, 5)
    cut = jnp.asarray(policy.cutmix > 0)
    if policy.cutmix and policy.mixup:
        cut = jax.random.uniform(switch) < policy.switch
    box, area = cutmix_box(corner, _beta(cutmix, policy.cutmix), size)
    ratio, pixels = _beta(mixup, policy.mixup), size[0] * size[1]
    weights = jnp.where(cut, 1.0 - box, jnp.broadcast_to(ratio, size))
    ratio = jnp.where(cut, (pixels - area) / pixels, ratio)
    if policy.probability < 1:
        mixed = jax.random.uniform(do) < policy.probability
        weights, ratio = jnp.where(mixed, weights, 1.0), jnp.where(mixed, ratio, 1.0)
    return weights, ratio


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draw from the distribution Beta(alpha, alpha); 1 where alpha is 0."""
    if not alpha:
        return jnp.ones(())
    drawn = jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha)
    # Rounded to 16 bits, so that the ratio and its complement add up to exactly 1.
    return jnp.round(drawn * 2**16) / 2**16


def cutmix_box(
    key: jax.Array, ratio: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Draw a box that covers 1 - `ratio` of the image before it is clipped to the image.

    Args:
      key: PRNG key of its center, which is uniform over the image.
      ratio: share of the image outside the box.
      size: height and width of the image.

    Returns:
      (H, W) float32, 1 in the box and 0 elsewhere, and the number of pixels in it, () int32.
    """
    cut = jnp.sqrt(1 - ratio)
    inside, area = jnp.ones(size), jnp.ones((), jnp.int32)
    centers = jax.random.uniform(key, (2,))
    for axis, side in enumerate(size):
        length = jnp.floor(side * cut).astype(jnp.int32)
        center = jnp.floor(centers[axis] * side).astype(jnp.int32)
        low = jnp.maximum(center - length // 2, 0)
        high = jnp.minimum(center + (length + 1) // 2, side)
        pixel = jnp.arange(side)
        within = (pixel >= low) & (pixel < high)
        inside = inside * jnp.expand_dims(within, 1 - axis)
        area = area * (high - low)
    return inside, area
