"""What happens to images on the device, inside the compiled step: resize, augment, normalize.

The order is timm's: crop, flip, then RandAugment or 3-Augment and color jitter on uint8 images,
then normalization, then random erasing. Every random choice is a pure function of (key, position of
the example in the global batch), so that it does not depend on how many devices or processes share
the batch; nearly all arithmetic is on integers, so that results do not depend on it either.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from bocb_jax.augment import erasing, geometry, operations
from bocb_jax.augment.operations import RandAugment
from bocb_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which random changes training images get; static under `jax.jit`.

    Attributes:
      shift: largest shift each way, as a fraction of the side; what comes in is as `pad_mode` says.
      rotate: largest rotation each way, in degrees, bilinear on black.
      scale: largest change of size each way, as a fraction.
      pad: pixels added on each side before a crop of the image's size.
      pad_mode: what they are, "zero" or "reflect".
      resized_crop: lowest and highest share of the area that is cut out and resized (bicubic);
        None for the whole image.
      ratio: lowest and highest width by height of what is cut out.
      flip: mirror left and right with probability one half.
      rand_augment: timm's notation, such as "rand-m9-mstd0.5-inc1"; None for none.
      three_augment: grayscale, solarization or blur.
      color_jitter: largest change of brightness, contrast and saturation. timm leaves it out where
        there is RandAugment; here both are done if both are given.
      erase: probability of random erasing.
    """

    shift: float = 0.0
    flip: bool = False
    rotate: float = 0.0
    scale: float = 0.0
    pad: int = 0
    pad_mode: str = "zero"
    resized_crop: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rand_augment: str | None = None
    three_augment: bool = False
    color_jitter: float = 0.0
    erase: float = 0.0

    def __post_init__(self):
        if self.shift and self.pad:
            raise UserError("Give a shift as a fraction of the side or a pad in pixels, not both.")
        if self.pad_mode not in ("zero", "reflect"):
            raise UserError(f"pad_mode is 'zero' or 'reflect', not '{self.pad_mode}'.")
        for name, range_ in (("resized_crop", self.resized_crop or (1, 1)), ("ratio", self.ratio)):
            if len(range_) != 2 or not 0 < range_[0] <= range_[1]:
                raise UserError(f"{name} is a lowest and a highest number above 0, not {range_}.")
        if self.resized_crop and self.resized_crop[1] > 1:
            raise UserError(f"resized_crop is a share of the area; {self.resized_crop} exceeds 1.")
        if self.rand_augment:
            RandAugment.parse(self.rand_augment)
        if not 0 <= self.erase <= 1:
            raise UserError(f"erase is a probability, not {self.erase}.")


def preprocess(
    images: jax.Array,
    *,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    key: jax.Array | None = None,
    policy: Augmentation | None = None,
    crop_ratio: float = 1.0,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Resizes, augments (given a key and a policy) and normalizes a batch.

    Args:
      images: (B, H, W, 3) uint8.
      image_size: side of the square result.
      mean: per channel, of pixels scaled to 0 ... 1.
      std: per channel, of pixels scaled to 0 ... 1.
      key: a different one at every step; None for evaluation.
      policy: None for no augmentation.
      crop_ratio: share of the shorter side that evaluation keeps, in the middle.
      mesh: over which the batch is divided. On CPUs images are augmented one after the other, which
        the compiler cannot divide by itself.

    Returns:
      (B, image_size, image_size, 3) float32.
    """
    if key is None or policy is None:
        return normalize(geometry.resize(images, image_size, crop_ratio), mean, std)
    size = (image_size, image_size)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(images)))
    kinds, steps = color_steps(keys, policy, size)
    draws = {
        "place": _draws(keys, "place", 5),
        "crop": _draws(keys, "crop", 22),
        "steps": steps,
        "erase": _draws(keys, "erase", erasing.DRAWS),
        "noise": _keys(keys, "noise"),
    }
    if not policy.resized_crop:
        images = geometry.resize(images, image_size)
    branching = jax.default_backend() == "cpu"
    fill = tuple(min(255, round(255 * x)) for x in mean)

    def augment(image_and_draws):
        image, draws = image_and_draws
        image = crop(image, size, draws["crop"], draws["place"], policy)
        if kinds:
            steps = draws["steps"]
            image = operations.apply(image, steps, kinds=kinds, fill=fill, branching=branching)
        if not policy.erase:
            return normalize(image, mean, std)
        scale = functools.partial(normalize, mean=mean, std=std)
        return erasing.erase(image, draws["erase"], draws["noise"], policy.erase, scale)

    if not branching or not (policy.resized_crop or kinds or policy.erase):
        return jax.vmap(augment)((images, draws))
    # A CPU takes one image after the other: a switch then runs one of its branches only, and small
    # matrix products are several times faster than one batched product.
    one_by_one = functools.partial(lax.map, augment)
    if mesh is not None and mesh.size > 1:
        split = PartitionSpec(mesh.axis_names)
        one_by_one = jax.shard_map(
            one_by_one, mesh=mesh, in_specs=split, out_specs=split, check_vma=False
        )
    return one_by_one((images, draws))


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Pixels on the scale 0 ... 255 to zero mean and unit variance, channel by channel.

    Args:
      images: (..., C).
      mean: C values, of pixels scaled to 0 ... 1.
      std: C values, of pixels scaled to 0 ... 1.
    """
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean = np.float32(mean).reshape(shape) * 255
    # As a product: a compiler may or may not make one of a division, and round differently.
    scale = 1 / (np.float32(std).reshape(shape) * 255)
    return (images.astype(jnp.float32) - mean) * scale


def crop(
    image: jax.Array,
    size: tuple[int, int],
    part: jax.Array,
    place: jax.Array,
    policy: Augmentation,
) -> jax.Array:
    """Which part of an image is seen, and which way round.

    Args:
      image: (H, W, C) uint8, of the result's size unless the policy has a resized crop.
      size: height and width of the result.
      part: (22,) uniform random numbers for the resized crop.
      place: (5,) for all else.
      policy: what is allowed.

    Returns:
      (height, width, C); uint8 unless images are turned or scaled.
    """
    angle, scale, down, right, side = place
    mirrored = policy.flip & (side < 0.5)
    if policy.resized_crop:
        box = geometry.resized_crop_box(part, image.shape[:2], policy.resized_crop, policy.ratio)
        image = geometry.crop_and_resize(image, box, size, mirrored)
    elif policy.flip:
        image = geometry.flip(image, mirrored)
    if policy.rotate or policy.scale:
        angle, scale = policy.rotate * (2 * angle - 1), 1 + policy.scale * (2 * scale - 1)
        image = geometry.turn_and_scale(image, angle, scale)
    pad = policy.pad or round(policy.shift * size[0])
    if pad:
        down, right = (jnp.floor(x * (2 * pad + 1)).astype(jnp.int32) for x in (down, right))
        image = geometry.padded_crop(image, down, right, pad, policy.pad_mode)
    return image


def color_steps(keys: jax.Array, policy: Augmentation, size: tuple[int, int]):
    """The operations that each image gets, and the kinds that they are chosen from."""
    parts = []
    if policy.rand_augment:
        drawn = RandAugment.parse(policy.rand_augment)
        draws = _draws(keys, "rand_augment", drawn.draws)
        steps = jax.vmap(lambda x: drawn.steps(x, size))(draws)
        parts.append((operations.RAND_AUGMENT_KINDS, steps))
    if policy.three_augment:
        steps = jax.vmap(operations.three_augment_steps)(_draws(keys, "three_augment", 2))
        parts.append((operations.THREE_AUGMENT_KINDS, steps))
    if policy.color_jitter:
        jitter = functools.partial(operations.jitter_steps, strength=policy.color_jitter)
        parts.append((operations.JITTER_KINDS, jax.vmap(jitter)(_draws(keys, "jitter", 6))))
    return operations.joined(parts)


_STREAMS = ("place", "crop", "rand_augment", "three_augment", "jitter", "erase", "noise")


def _draws(keys: jax.Array, stream: str, count: int) -> jax.Array:
    """(B, count) uniform random numbers; what a policy leaves out does not disturb the rest."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(_keys(keys, stream))


def _keys(keys: jax.Array, stream: str) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, _STREAMS.index(stream)))(keys)
