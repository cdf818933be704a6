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
    batch, side = images.shape[:2]
    # One draw per image for everything: what a policy leaves out does not disturb the rest.
    draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (5,)))
    angle, size, down, right, mirrored = draw(jnp.arange(batch)).T
    if policy.rotate or policy.scale:
        images = affine(
            images,
            angles=policy.rotate * (2 * angle - 1),
            sizes=1 + policy.scale * (2 * size - 1),
        )
    if policy.shift:
        most = round(policy.shift * side)
        down, right = (jnp.floor(x * (2 * most + 1)).astype(int) - most for x in (down, right))
        images = shift(images, down=down, right=right)
    if policy.flip:
        images = flip(images, mirrored < 0.5)
    return images


def shift(images: jax.Array, *, down: jax.Array, right: jax.Array) -> jax.Array:
    """Shifts each image by whole pixels; what comes in is black.

    This is the crop of an image padded with zeros.

    Args:
      images: (B, H, W, C).
      down: (B,) integers.
      right: (B,) integers.
    """
    height, width = images.shape[1:3]

    def move(image, down, right):
        rows, columns = jnp.arange(height) - down, jnp.arange(width) - right
        # A negative index would wrap round; one past the end is filled.
        rows = jnp.where(rows < 0, height, rows)
        columns = jnp.where(columns < 0, width, columns)
        return image.at[rows[:, None], columns[None, :]].get(mode="fill", fill_value=0)

    return jax.vmap(move)(images, down, right)


def flip(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Mirrors some images left and right.

    Args:
      images: (B, H, W, C).
      mirrored: (B,) booleans.
    """
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def affine(images: jax.Array, *, angles: jax.Array, sizes: jax.Array) -> jax.Array:
    """Turns and scales each image about its centre, bilinearly; what comes in is black.

    Args:
      images: (B, H, W, C).
      angles: (B,) degrees, counter-clockwise.
      sizes: (B,) 2 shows everything twice as large.
    """
    height, width = images.shape[1:3]
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - middle_y, jnp.arange(width) - middle_x, indexing="ij")

    def warp(image, angle, size):
        cos, sin = jnp.cos(jnp.deg2rad(angle)) / size, jnp.sin(jnp.deg2rad(angle)) / size
        # Where each pixel of the result comes from.
        place = [cos * y + sin * x + middle_y, cos * x - sin * y + middle_x]
        return jax.vmap(lambda channel: map_coordinates(channel, place, order=1), -1, -1)(image)

    return jax.vmap(warp)(images, angles, sizes)
