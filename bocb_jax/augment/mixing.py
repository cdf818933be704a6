"""Mixup and CutMix: each image of a batch mixed with another, and their labels alike."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from bocb_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How batches are mixed; one choice and one share for the whole batch, as in timm.

    Attributes:
      mixup: alpha of the beta distribution of Mixup's share (Zhang et al., 2017, arXiv
        1710.09412); 0 for no Mixup.
      cutmix: the same for CutMix (Yun et al., 2019, arXiv 1905.04899).
      probability: of mixing a batch at all.
      switch: probability of CutMix where both are used.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5

    def __post_init__(self):
        if self.mixup < 0 or self.cutmix < 0:
            raise UserError(
                f"The alphas of Mixup and CutMix are not negative; they are {self.mixup} and "
                f"{self.cutmix}."
            )
        for name in ("probability", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"mixing.{name} is {getattr(self, name)}; it lies between 0 and 1.")

    @property
    def active(self) -> bool:
        """Whether anything is ever mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


def smoothed_one_hot(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """(B,) integers -> (B, num_classes), with `smoothing` spread evenly over all classes.

    Mixed afterwards, these are the targets of timm's Mixup.
    """
    on_and_off = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return on_and_off * (1 - smoothing) + smoothing / num_classes


def mix(
    images: jax.Array, targets: jax.Array, *, key: jax.Array, policy: Mixing
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with its mirror image in the order of the batch.

    A pure function of the global batch: the first example is mixed with the last one, on whichever
    devices they lie.

    Args:
      images: (B, H, W, C) float.
      targets: (B, classes), each summing to one.
      key: a different one at every step.
      policy: static under `jax.jit`.

    Returns:
      Images and targets of the same shapes.
    """
    if not policy.active:
        return images, targets
    weights, own = pixel_weights(key, images.shape[1:3], policy)
    return _sum(weights[None, :, :, None], images), _sum(own, targets)


def _sum(own: jax.Array, x: jax.Array) -> jax.Array:
    # The products are rounded to one binary place less than float32 has. A compiler that merges a
    # product with the sum after it, or does not, as it divides the work, would round differently.
    product = own * x, (1 - own) * x[::-1]
    return sum(lax.reduce_precision(part, exponent_bits=8, mantissa_bits=22) for part in product)


def pixel_weights(
    key: jax.Array, size: tuple[int, int], policy: Mixing
) -> tuple[jax.Array, jax.Array]:
    """How much of each pixel is the example's own, (H, W), and the mean of that."""
    do, switch, mixup, cutmix, corner = jax.random.split(key, 5)
    cut = jnp.asarray(policy.cutmix > 0)
    if policy.cutmix and policy.mixup:
        cut = jax.random.uniform(switch) < policy.switch
    box, area = cutmix_box(corner, _share(cutmix, policy.cutmix), size)
    share, pixels = _share(mixup, policy.mixup), size[0] * size[1]
    weights = jnp.where(cut, 1.0 - box, jnp.broadcast_to(share, size))
    share = jnp.where(cut, (pixels - area) / pixels, share)
    if policy.probability < 1:
        mixed = jax.random.uniform(do) < policy.probability
        weights, share = jnp.where(mixed, weights, 1.0), jnp.where(mixed, share, 1.0)
    return weights, share


def _share(key: jax.Array, alpha: float) -> jax.Array:
    if not alpha:
        return jnp.ones(())
    drawn = jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha)
    # To 16 binary places, so that it and its complement add up to one exactly.
    return jnp.round(drawn * 2**16) / 2**16


def cutmix_box(
    key: jax.Array, share: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """A box that covers 1 - `share` of the image, cut off at its edges.

    Args:
      key: of the place of its center.
      share: what is left of the image.
      size: height and width of the image.

    Returns:
      (H, W) of 1.0 in the box and 0.0 elsewhere, and the number of pixels in it.
    """
    ratio = jnp.sqrt(1 - share)
    inside, area = jnp.ones(size), jnp.ones((), jnp.int32)
    centers = jax.random.uniform(key, (2,))
    for axis, side in enumerate(size):
        length = jnp.floor(side * ratio).astype(jnp.int32)
        center = jnp.floor(centers[axis] * side).astype(jnp.int32)
        low = jnp.maximum(center - length // 2, 0)
        high = jnp.minimum(center + (length + 1) // 2, side)
        place = jnp.arange(side)
        within = (place >= low) & (place < high)
        inside = inside * jnp.expand_dims(within, 1 - axis)
        area = area * (high - low)
    return inside, area
