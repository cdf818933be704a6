"""Random erasing (Zhong et al., 2017, arXiv 1708.04896): a box of noise over part of an image."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bocb_jax.augment.geometry import box_sizes

DRAWS = 23  # uniform random numbers for one image
AREA = (0.02, 1 / 3)  # share of the image
ASPECT = (0.3, 1 / 0.3)  # width by height


def erase(
    image: jax.Array,
    draws: jax.Array,
    key: jax.Array,
    probability: float,
    normalize: Callable[[jax.Array], jax.Array] = lambda image: image,
) -> jax.Array:
    """Fills a random box with standard normal noise, one value per pixel and channel.

    Up to ten boxes of random area and aspect are tried, as in timm; if none fits, nothing happens.

    Args:
      image: (H, W, C).
      draws: (23,) uniform random numbers.
      key: of the noise.
      probability: of erasing at all.
      normalize: done before, in the same pass over the pixels.

    Returns:
      The normalized image with its box of noise.
    """
    box = erased_box(draws[1:], image.shape[:2])
    wanted = (draws[0] < probability) & (box[2] > 0)

    def fill(image):
        return fill_with_noise(normalize(image), box, key)

    return lax.cond(wanted, fill, normalize, image)


def erased_box(draws: jax.Array, size: tuple[int, int]):
    """top, left, height, width of the box to erase, all 0 if none fits; (22,) draws."""
    heights, widths = box_sizes(draws[:20].reshape(2, 10), size, AREA, ASPECT)
    fits = (widths < size[1]) & (heights < size[0])
    first = jnp.argmax(fits)
    height, width = jnp.stack([heights, widths])[:, first] * fits[first]
    free = jnp.stack([size[0] - height, size[1] - width])
    top, left = jnp.floor(draws[20:] * (free + 1)).astype(jnp.int32)
    return top, left, height, width


def fill_with_noise(image: jax.Array, box, key: jax.Array) -> jax.Array:
    """Standard normal noise inside a box of at most a third of the image (and half a pixel)."""
    top, left, height, width = box
    rows, columns, channels = image.shape
    most = math.ceil(rows * columns * AREA[1] + (rows + columns) / 2)
    # No more noise is drawn than the box needs, part after part, from 16 random bits a number.
    part = min(most, 4096)

    def draw(i, noise):
        bits = jax.random.bits(jax.random.fold_in(key, i), (part, channels), jnp.uint16)
        normal = math.sqrt(2) * lax.erf_inv((bits.astype(jnp.float32) + 0.5) * 2.0**-15 - 1)
        return lax.dynamic_update_slice(noise, normal, (i * part, 0))

    noise = jnp.zeros((-(-most // part) * part, channels))
    noise = lax.fori_loop(0, (height * width + part - 1) // part, draw, noise)
    row = np.arange(rows, dtype=np.int32)[:, None] - top
    column = np.arange(columns, dtype=np.int32)[None, :] - left
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = jnp.where(inside, row * width + column, 0)
    found = noise.at[place].get(mode="promise_in_bounds").astype(image.dtype)
    return jnp.where(inside[..., None], found, image)
