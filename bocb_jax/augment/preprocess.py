"""Preprocessing on the device, within the compiled step: resize, augment and normalize.

The order is timm's: crop, flip, then RandAugment or 3-Augment and color jitter on uint8 images,
then normalization, then random erasing. Every random choice is a pure function of (key, position of
the example in the global batch) and so independent of how many devices or processes share the
batch; nearly all arithmetic is on integers, so that results are independent of it too.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from bocb_jax.augment import erasing, geometry, operations
from bocb_jax.augment.operations import Operations, RandAugment
from bocb_jax.errors import UserError

_RANGES = {
    "shift": (0, 1),
    "rotate": (-360, 360),
    "scale": (0, 1),
    "pad": (0, 10_000),
    "color_jitter": (0, 10),
    "erase": (0, 1),
}
_AT_A_TIME = 128  # images that an accelerator augments together, with every operation on each


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which random changes training images undergo; static under `jax.jit`.

    Attributes:
      shift: largest shift in each direction, as a fraction of the side; pads as `pad_mode` says.
      flip: whether to flip horizontally with probability 1/2.
      rotate: largest rotation in each direction, in degrees; bilinear, black outside.
      scale: largest relative change of size in each direction.
      pad: pixels added on each side before a crop of the image's size.
      pad_mode: "zero" for black padding, or "reflect".
      resized_crop: least and largest share of the area that is cut out and resized (bicubic); None
        for the whole image.
      ratio: least and largest aspect, width over height, of the resized crop.
      rand_augment: timm's notation, such as "rand-m9-mstd0.5-inc1"; None for no RandAugment.
      three_augment: whether to apply grayscale, solarization or blur.
      color_jitter: largest relative change of brightness, contrast and saturation. timm drops it
        where there is RandAugment; here both are applied if both are given.
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
        for name, (least, largest) in _RANGES.items():
            if not least <= getattr(self, name) <= largest:  # nor is NaN
                raise UserError(
                    f"{name} must lie in {least:g} ... {largest:g}; it is {getattr(self, name)}."
                )
        if np.float32(self.scale) == 1:
            raise UserError(
                "scale must lie below 1, at which an image may shrink to a point; it is "
                f"{self.scale}."
            )
        if self.shift and self.pad:
            raise UserError("Give a shift as a fraction of the side or a pad in pixels, not both.")
        if self.pad_mode not in ("zero", "reflect"):
            raise UserError(f"pad_mode must be 'zero' or 'reflect', not '{self.pad_mode}'.")
        for name, range_ in (("resized_crop", self.resized_crop or (1, 1)), ("ratio", self.ratio)):
            if np.shape(range_) != (2,) or not 0 < range_[0] <= range_[1] < math.inf:
                raise UserError(
                    f"{name} must be a least and a largest number above 0, not {range_}."
                )
        if self.resized_crop and self.resized_crop[1] > 1:
            raise UserError(f"resized_crop is a share of the area; {self.resized_crop} exceeds 1.")
        if self.rand_augment:
            RandAugment.parse(self.rand_augment)


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
    """Resize, augment (given a key and a policy) and normalize a batch.

    Args:
      images: (B, H, W, 3) uint8.
      image_size: side of the square result in pixels.
      mean: of each channel, with pixels scaled to 0 ... 1.
      std: of each channel, with pixels scaled to 0 ... 1.
      key: PRNG key of the step; None for evaluation.
      policy: None for no augmentation.
      crop_ratio: share of the shorter side that evaluation keeps, in the center.
      mesh: mesh that the batch is sharded over, whose platform is compiled for; None for one device
        of the default backend. On CPUs images are augmented one by one, which the compiler cannot
        shard by itself.

    Returns:
      (B, image_size, image_size, 3) float32.
    """
    if key is None or policy is None:
        return normalize(geometry.resize(images, image_size, crop_ratio), mean, std)
    size = (image_size, image_size)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(images)))
    kinds, drawn_operations = sample_operations(keys, policy, size)
    draws = {
        "geometry": _uniform(keys, "geometry", 5),
        "crop": _uniform(keys, "crop", 22),
        "operations": drawn_operations,
        "erase": _uniform(keys, "erase", erasing.NUM_DRAWS),
        "noise": _stream_keys(keys, "noise"),
    }
    if not policy.resized_crop:
        images = geometry.resize(images, image_size)
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    branching = platform == "cpu"
    fill = tuple(min(255, round(255 * x)) for x in mean)
    normalize_image = functools.partial(normalize, mean=mean, std=std)

    def augment(image_and_draws: tuple[jax.Array, dict[str, Any]]) -> jax.Array:
        image, draws = image_and_draws
        image = crop(image, size, draws["crop"], draws["geometry"], policy)
        if kinds:
            image = operations.apply(
                image, draws["operations"], kinds=kinds, fill=fill, branching=branching
            )
        if not policy.erase:
            return normalize_image(image)
        return erasing.erase(image, draws["erase"], draws["noise"], policy.erase, normalize_image)

    costly = policy.resized_crop or kinds or policy.erase
    share = len(images) // (1 if mesh is None else mesh.size)
    if not costly or (not branching and share <= _AT_A_TIME):
        return jax.vmap(augment)((images, draws))
    # A CPU processes images one by one: a switch then runs only one of its branches, and small
    # matrix products are several times faster than one batched product. Elsewhere every branch is
    # computed, whose results for a large batch would not fit into memory.
    return _in_parts(augment, mesh, 1 if branching else _AT_A_TIME)((images, draws))


def _in_parts(function: Callable[[Any], jax.Array], mesh: Mesh | None, size: int) -> Callable:
    """Map over a batch, `size` images at a time, on each device of a mesh for its own images."""
    mapped = functools.partial(lax.map, function, batch_size=size if size > 1 else None)
    if mesh is None or mesh.size == 1:
        return mapped
    split = PartitionSpec(mesh.axis_names)
    return jax.shard_map(mapped, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Normalize pixels on the scale 0 ... 255 to zero mean and unit variance in each channel.

    Args:
      images: (..., C).
      mean: C values, of pixels scaled to 0 ... 1.
      std: C values, of pixels scaled to 0 ... 1.

    Returns:
      (..., C) float32.
    """
    shape = (1,) * (images.ndim - 1) + (-1,)
    center = np.array(mean, np.float32).reshape(shape) * 255
    # A product, since the compiler may or may not replace a division by one and round differently.
    scale = 1 / (np.array(std, np.float32).reshape(shape) * 255)
    return (images.astype(jnp.float32) - center) * scale


def crop(
    image: jax.Array,
    size: tuple[int, int],
    box_draws: jax.Array,
    draws: jax.Array,
    policy: Augmentation,
) -> jax.Array:
    """Apply the geometric augmentation of a policy: crop, flip, rotate, scale and shift.

    Args:
      image: (H, W, C) uint8, of the result's size unless the policy has a resized crop.
      size: height and width of the result.
      box_draws: (22,) uniform random numbers for the resized crop.
      draws: (5,) uniform random numbers for everything else.
      policy: which of them to apply, and how strongly.

    Returns:
      (height, width, C); float32 if images are rotated or scaled, uint8 otherwise.
    """
    angle, scale, down, right, side = draws
    mirrored = policy.flip & (side < 0.5)
    if policy.resized_crop:
        height, width, _ = image.shape
        box = geometry.resized_crop_box(
            box_draws, (height, width), policy.resized_crop, policy.ratio
        )
        image = geometry.crop_and_resize(image, box, size, mirrored)
    elif policy.flip:
        image = geometry.flip(image, mirrored)
    if policy.rotate or policy.scale:
        angle, scale = policy.rotate * (2 * angle - 1), 1 + policy.scale * (2 * scale - 1)
        image = geometry.rotate_and_scale(image, angle, scale)
    pad = policy.pad or round(policy.shift * size[0])
    if pad:
        down, right = (jnp.floor(x * (2 * pad + 1)).astype(jnp.int32) for x in (down, right))
        image = geometry.padded_crop(image, down, right, pad, policy.pad_mode)
    return image


def sample_operations(
    keys: jax.Array, policy: Augmentation, size: tuple[int, int]
) -> tuple[tuple[str, ...], Operations | None]:
    """Draw the operations on each image of a batch.

    Args:
      keys: (B,) PRNG keys.
      policy: the augmentation.
      size: height and width of the images.

    Returns:
      The kinds of operations that occur, and the operations, with a leading axis of B.
    """
    parts: list[tuple[tuple[str, ...], Operations]] = []
    if policy.rand_augment:
        rand_augment = RandAugment.parse(policy.rand_augment)
        draws = _uniform(keys, "rand_augment", rand_augment.num_draws)
        sampled = jax.vmap(lambda x: rand_augment.sample(x, size))(draws)
        parts.append((operations.RAND_AUGMENT_KINDS, sampled))
    if policy.three_augment:
        sampled = jax.vmap(operations.sample_three_augment)(_uniform(keys, "three_augment", 2))
        parts.append((operations.THREE_AUGMENT_KINDS, sampled))
    if policy.color_jitter:
        jitter = functools.partial(operations.sample_color_jitter, strength=policy.color_jitter)
        parts.append((operations.JITTER_KINDS, jax.vmap(jitter)(_uniform(keys, "jitter", 6))))
    return operations.concatenate(parts)


# The random streams of an image. Their order is part of the results.
_STREAMS = ("geometry", "crop", "rand_augment", "three_augment", "jitter", "erase", "noise")


def _uniform(keys: jax.Array, stream: str, count: int) -> jax.Array:
    """Draw (B, count) uniform random numbers from a stream of their own.

    What a policy leaves out therefore does not change the rest.
    """
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(_stream_keys(keys, stream))


def _stream_keys(keys: jax.Array, stream: str) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, _STREAMS.index(stream)))(keys)
