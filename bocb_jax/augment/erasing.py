"""Random erasing (Zhong et al., 2017, arXiv 1708.04896): noise in a random box of an image."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bocb_jax.augment.geometry import Box, box_sizes

NUM_DRAWS = 23  # uniform random numbers for one image
AREA = (0.02, 1 / 3)  # least and largest share of the image
ASPECT = (0.3, 1 / 0.3)  # least and largest width over height

Normalize = Callable[[jax.Array], jax.Array]


def erase(
    image: jax.Array,
    draws: jax.Array,
    key: jax.Array,
    probability: float,
    normalize: Normalize = lambda image: image,
) -> jax.Array:
    """Normalize an image and fill a random box of it with standard normal noise.

    Up to ten boxes of random area and aspect are tried, as in timm; if none fits, nothing is
    erased.

    Args:
      image: (H, W, C).
      draws: (23,) uniform random numbers.
      key: key of the noise, which is drawn for each pixel and channel.
      probability: probability of erasing at all.
      normalize: maps (H, W, C) to float32 of the same shape; fused with the erasing.

    Returns:
      (H, W, C), what `normalize` gives outside the box.
    """
    rows, columns, _ = image.shape
    box = erased_box(draws[1:], (rows, columns))
    wanted = (draws[0] < probability) & (box[2] > 0)

    def fill(image: jax.Array) -> jax.Array:
        return fill_with_noise(normalize(image), box, key)

    return lax.cond(wanted, fill, normalize, image)


def erased_box(draws: jax.Array, size: tuple[int, int]) -> Box:
    """Return the box to erase; height and width are 0 if none fits.

    Args:
      draws: (22,) uniform random numbers.
      size: height and width of the image.
    """
    heights, widths = box_sizes(draws[:20].reshape(2, 10), size, AREA, ASPECT)
    fits = (widths < size[1]) & (heights < size[0])
    first = jnp.argmax(fits)
    height, width = jnp.stack([heights, widths])[:, first] * fits[first]
    free = jnp.stack([size[0] - height, size[1] - width])
    top, left = jnp.floor(draws[20:] * (free + 1)).astype(jnp.int32)
    return top, left, height, width


def fill_with_noise(image: jax.Array, box: Box, key: jax.Array) -> jax.Array:
    """Fill a box of at most a third of the image with standard normal noise.

    Args:
      image: (H, W, C).
      box: its sides are rounded, and may exceed a third of the image by half a pixel each.
      key: key of the noise.
    """
    top, left, height, width = box
    rows, columns, channels = image.shape
    most = math.ceil(rows * columns * AREA[1] + (rows + columns) / 2)
    # Noise is drawn in parts, only as many as the box needs, from 16 random bits for each number.
    part = min(most, 4096)

    def draw(i: jax.Array, noise: jax.Array) -> jax.Array:
        bits = jax.random.bits(jax.random.fold_in(key, i), (part, channels), jnp.uint16)
        normal = math.sqrt(2) * lax.erf_inv((bits.astype(jnp.float32) + 0.5) * 2.0**-15 - 1)
        return lax.dynamic_update_slice(noise, normal, (i * part, 0))

    noise = jnp.zeros((-(-most // part) * part, channels))
    noise = lax.fori_loop(0, (height * width + part - 1) // part, draw, noise)
    row = np.arange(rows, dtype=np.int32)[:, None] - top
    column = np.arange(columns, dtype=np.int32)[None, :] - left
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = jnp.where(inside, row * width + column, 0)
    found = noise.at[source].get(mode="promise_in_bounds").astype(image.dtype)
    return jnp.where(inside[..., None], found, image)
