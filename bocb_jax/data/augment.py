"""What happens to images on the device, inside the compiled step: resize, augment, normalize.

Images come as uint8 and stay on the scale 0 ... 255 until `normalize`. Every random choice is a
pure function of (key, position of the example in the global batch), so that it does not depend on
how many devices or processes share the batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which random changes training images get.

    Attributes:
      shift: largest shift each way, as a fraction of the side; what comes in is black.
      flip: mirror left and right with probability one half.
      rotate: largest rotation each way, in degrees.
      scale: largest change of size each way, as a fraction.
    """

    shift: float = 0.0
    flip: bool = False
    rotate: float = 0.0
    scale: float = 0.0


def preprocess(
    images: jax.Array,
    *,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    key: jax.Array | None = None,
    policy: Augmentation | None = None,
) -> jax.Array:
    """Resizes, augments (given a key and a policy) and normalizes a batch.

    Args:
      images: (B, H, W, C) uint8, or float on the scale 0 ... 255.
      image_size: side of the square result.
      mean: per channel, of pixels scaled to 0 ... 1.
      std: per channel, of pixels scaled to 0 ... 1.
      key: a different one at every step; None for evaluation.
      policy: None for no augmentation.

    Returns:
      (B, image_size, image_size, C) float32.
    """
    images = resize(images, image_size)
    if key is not None and policy is not None:
        images = augment(images, key=key, policy=policy)
    return normalize(images, mean, std)


def resize(images: jax.Array, size: int) -> jax.Array:
    """Bicubic resize to size x size: the shorter side to `size`, then the central square.

    The kernel (Keys, 1981, a = -0.5) and the handling of edges are those of Pillow; it is widened
    against aliasing where the image shrinks, and only there.

    Args:
      images: (B, H, W, C) uint8 or float.
      size: side of the result.

    Returns:
      (B, size, size, C) float32.
    """
    batch, height, width, channels = images.shape
    images = images.astype(jnp.float32)
    if height == width == size:
        return images
    short = min(height, width)
    height, width = (max(size, round(side * size / short)) for side in (height, width))
    images = jax.image.resize(images, (batch, height, width, channels), "cubic")
    top, left = (height - size) // 2, (width - size) // 2
    # A bicubic kernel overshoots at edges; pixels do not.
    return jnp.clip(images[:, top : top + size, left : left + size], 0.0, 255.0)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Pixels on the scale 0 ... 255 to zero mean and unit variance, channel by channel.

    Args:
      images: (B, H, W, C).
      mean: C values, of pixels scaled to 0 ... 1.
      std: C values, of pixels scaled to 0 ... 1.
    """
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) * 255 for x in (mean, std))
    return (images.astype(jnp.float32) - mean) / std


def augment(images: jax.Array, *, key: jax.Array, policy: Augmentation) -> jax.Array:
    """Random changes of each image, by its own key.

    Args:
      images: (B, H, W, C) float, black = 0.
      key: a different one at every step.
      policy: static under `jax.jit`.

    Returns:
      Images of the same shape.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(images.shape[0]))
    affine, shift, flip = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
    if policy.rotate or policy.scale:
        images = random_affine(images, affine, rotate=policy.rotate, scale=policy.scale)
    if policy.shift:
        images = random_shift(images, shift, pixels=round(policy.shift * images.shape[1]))
    if policy.flip:
        images = random_flip(images, flip)
    return images


def random_shift(images: jax.Array, keys: jax.Array, *, pixels: int) -> jax.Array:
    """Shifts each image by up to `pixels` each way; what comes in is black.

    This is the random crop of an image padded with zeros.

    Args:
      images: (B, H, W, C).
      keys: (B,) keys, one per image.
      pixels: largest shift.
    """
    height, width = images.shape[1:3]

    def shift(image, key):
        down, right = jax.random.randint(key, (2,), -pixels, pixels + 1)
        # Rows and columns that lie outside are given an index past the end (a negative one
        # would wrap round), which `fill` turns to black.
        rows, columns = jnp.arange(height) - down, jnp.arange(width) - right
        rows = jnp.where(rows < 0, height, rows)
        columns = jnp.where(columns < 0, width, columns)
        return image.at[rows[:, None], columns[None, :]].get(mode="fill", fill_value=0)

    return jax.vmap(shift)(images, keys)


def random_flip(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirrors each image left and right with probability one half.

    Args:
      images: (B, H, W, C).
      keys: (B,) keys, one per image.
    """
    flipped = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def random_affine(images: jax.Array, keys: jax.Array, *, rotate: float, scale: float) -> jax.Array:
    """Turns and scales each image about its centre, bilinearly; what comes in is black.

    Args:
      images: (B, H, W, C).
      keys: (B,) keys, one per image.
      rotate: largest rotation each way, in degrees.
      scale: largest change of size each way, as a fraction.
    """
    height, width = images.shape[1:3]
    y, x = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )

    def warp(image, key):
        turn, size = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        angle, size = jnp.deg2rad(rotate) * turn, 1 + scale * size
        cos, sin = jnp.cos(angle) / size, jnp.sin(angle) / size
        rows = cos * y - sin * x + (height - 1) / 2
        columns = sin * y + cos * x + (width - 1) / 2
        sample = lambda channel: map_coordinates(channel, [rows, columns], order=1)  # noqa: E731
        return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(warp)(images, keys)
