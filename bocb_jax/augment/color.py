"""Pillow's color operations on one image, exact to the last level.

Unless its docstring says otherwise, a function maps (H, W, 3) uint8 to the same shape and type. The
arithmetic is on integers, so that results depend neither on the hardware nor on how the compiler
fuses operations. Factors are multiples of 2**-14 (`on_grid`), for which Pillow's float32 arithmetic
is exact too, so that both agree.
"""

import jax
import jax.numpy as jnp
import numpy as np

FACTOR_BITS = 14


def on_grid(factor: jax.Array) -> jax.Array:
    """Return the multiple of 2**-14 that is nearest to a factor."""
    return jnp.round(factor * 2**FACTOR_BITS) / 2**FACTOR_BITS


def invert(image: jax.Array) -> jax.Array:
    """Return 255 minus every value."""
    return 255 - image


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keep the highest `bits` bits of every value; 0 or fewer gives black."""
    dropped = 8 - jnp.clip(bits, 0, 8)
    return ((image.astype(jnp.int32) >> dropped) << dropped).astype(jnp.uint8)


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert the values from `threshold` up."""
    return jnp.where(image.astype(jnp.int32) < threshold, image, 255 - image)


def solarize_add(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Add `amount` to the values below 128."""
    value = image.astype(jnp.int32)
    return jnp.where(value < 128, jnp.minimum(value + amount, 255), value).astype(jnp.uint8)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with black: a factor of 0 is black, 1 the image."""
    return blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the mean gray: a factor of 0 is gray everywhere, 1 the image."""
    light = luminance(image)
    mean = (2 * light.sum() + light.size) // (2 * light.size)
    return blend(jnp.full_like(image, mean), image, factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the grayscale image: a factor of 0 is gray, 1 the image."""
    return blend(grayscale(image), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the smoothed image: a factor of 0 is smooth, 1 the image, 2 sharpened."""
    return blend(smooth(image), image, factor)


def blend(start: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolate from `start` (factor 0) to `image` (1), or extrapolate; round down, then clip."""
    factor = jnp.round(factor * 2**FACTOR_BITS).astype(jnp.int32)
    start, image = start.astype(jnp.int32), image.astype(jnp.int32)
    mixed = ((start << FACTOR_BITS) + factor * (image - start)) >> FACTOR_BITS
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def grayscale(image: jax.Array) -> jax.Array:
    """Return the luminance in three equal channels."""
    return jnp.broadcast_to(luminance(image)[..., None], image.shape).astype(jnp.uint8)


def luminance(image: jax.Array) -> jax.Array:
    """Return the luminance, (H, W) int32, with the weights of ITU-R BT.601."""
    red, green, blue = (image[..., c].astype(jnp.int32) for c in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def smooth(image: jax.Array) -> jax.Array:
    """Return the mean of 3x3 pixels, the central one weighted by 5; border pixels are kept."""
    value = image.astype(jnp.int32)
    rows = value[:-2] + value[1:-1] + value[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * value[1:-1, 1:-1]
    # (2 total + 13) // 26 as a product and a shift: integer division is slow.
    inner = ((2 * total + 13) * 20165) >> 19
    return jax.lax.dynamic_update_slice(image, inner.astype(jnp.uint8), (1, 1, 0))


def histogram(image: jax.Array) -> jax.Array:
    """Count how often each value occurs in each channel: (3, 256) int32."""
    bins = image.reshape(-1, 3).astype(jnp.int32) + 256 * np.arange(3, dtype=np.int32)[None]
    counts = jnp.zeros(3 * 256, jnp.int32)
    return counts.at[bins].add(1, mode="promise_in_bounds").reshape(3, 256)


def autocontrast_table(counts: jax.Array) -> jax.Array:
    """Return the look-up table, (3, 256) int32, that stretches each channel to 0 ... 255.

    Args:
      counts: the image's histogram, (3, 256) int32.
    """
    present = counts > 0
    low = jnp.argmax(present, axis=1, keepdims=True)
    high = 255 - jnp.argmax(present[:, ::-1], axis=1, keepdims=True)
    value = np.arange(256, dtype=np.int32)[None]
    # Pillow multiplies in float64 and rounds down, which makes one in 700 of all possible entries
    # smaller by 1.
    stretched = jnp.clip((value - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, value)


def equalize_table(counts: jax.Array) -> jax.Array:
    """Return the look-up table, (3, 256) int32, that equalizes the histogram of each channel.

    Args:
      counts: the image's histogram, (3, 256) int32.
    """
    value = np.arange(256, dtype=np.int32)[None]
    last = jnp.max(jnp.where(counts > 0, value, 0), axis=1, keepdims=True)
    total = counts.sum(axis=1, keepdims=True)
    step = (total - jnp.take_along_axis(counts, last, axis=1)) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    spread = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, spread, value)


def look_up(image: jax.Array, table: jax.Array) -> jax.Array:
    """Replace every value by its entry in a table, (3, 256), with one row for each channel."""
    entries = image.astype(jnp.int32) + 256 * np.arange(3, dtype=np.int32)[None, None]
    return table.astype(jnp.uint8).reshape(-1).at[entries].get(mode="promise_in_bounds")


def gaussian_blur(image: jax.Array, radius: jax.Array) -> jax.Array:
    """Blur as Pillow does: three extended box blurs along each axis (Gwosdek et al., 2011).

    Args:
      image: (H, W, 3) uint8.
      radius: standard deviation in pixels, at most 2.
    """
    variance = radius * radius / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)  # 0 or 1 up to a radius of 2.4
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part = part / (6 * (variance - (whole + 1) ** 2))
    full = jnp.floor(2**24 / (2 * (whole + part) + 1)).astype(jnp.uint32)
    edge = (2**24 - (2 * whole.astype(jnp.uint32) + 1) * full) // 2
    none = jnp.zeros((), jnp.uint32)
    near, far = jnp.where(whole > 0, full, edge), jnp.where(whole > 0, edge, none)
    for axis in (1, 0):
        for _ in range(3):
            image = _box_blur(image, (far, near, full, near, far), axis)
    return image


def _box_blur(image: jax.Array, weights: tuple[jax.Array, ...], axis: int) -> jax.Array:
    """Convolve along one axis with an odd number of weights in units of 2**-24."""
    reach = len(weights) // 2
    padding = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
    padded = jnp.pad(image, padding, mode="edge").astype(jnp.uint32)
    size = image.shape[axis]
    parts = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(len(weights))]
    products = [weight * part for weight, part in zip(weights, parts, strict=True)]
    total = sum(products[1:], start=products[0])
    return ((total + 2**23) >> 24).astype(jnp.uint8)
