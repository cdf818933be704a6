"""Crops, flips, resizing and affine transforms of images, as Pillow computes them.

Pixels are integers, and so are the weights of interpolation (in units of 2**-14 or 2**-10): sums
are then exact in any order, and results depend neither on the hardware nor on how the compiler
fuses and divides the work.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.ndimage import map_coordinates

WEIGHT_BITS = 14  # weights of resizing: with the 8 bits of a pixel, exact in float32
COORDINATE_BITS = 16  # fraction of a coordinate
TAP_BITS = 10  # weights of `warp`: two of them and the 8 bits of a pixel fit in int32

# top, left, height and width in pixels, scalars
Box = tuple[jax.Array | int, jax.Array | int, jax.Array | int, jax.Array | int]


def flip(image: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Flip an image (H, W, C) horizontally where `mirrored`, () bool, is true."""
    return jnp.where(mirrored, image[:, ::-1], image)


def padded_crop(
    image: jax.Array, down: jax.Array, right: jax.Array, pad: int, mode: str
) -> jax.Array:
    """Pad an image on each side and cut out a crop of its original size.

    Args:
      image: (H, W, C).
      down: first row of the crop in the padded image, 0 ... 2 pad.
      right: first column of the crop in the padded image, 0 ... 2 pad.
      pad: pixels added on each side.
      mode: "zero" for black, or "reflect" about the outermost pixels.
    """
    padding = {"zero": "constant", "reflect": "reflect"}[mode]
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=padding)
    return lax.dynamic_slice(padded, (down, right, 0), image.shape)


def resized_crop_box(
    draws: jax.Array,
    size: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return a random box, distributed as in torchvision's RandomResizedCrop.

    Up to ten boxes of random area and aspect are tried, and a central one is taken if none fits.

    Args:
      draws: (22,) uniform random numbers.
      size: height and width of the image.
      area: least and largest share of the image's area.
      ratio: least and largest aspect, width over height.

    Returns:
      top, left, height and width, int32 scalars.
    """
    heights, widths = box_sizes(draws[:20].reshape(2, 10), size, area, ratio)
    fits = (widths <= size[1]) & (heights <= size[0])
    first = jnp.argmax(fits)
    aspect = size[1] / size[0]
    width = size[1] if aspect <= ratio[1] else round(size[0] * ratio[1])
    height = size[0] if aspect >= ratio[0] else round(size[1] / ratio[0])
    height, width = jnp.where(
        fits[first], jnp.stack([heights, widths])[:, first], jnp.array([height, width])
    )
    free = jnp.stack([size[0] - height, size[1] - width])
    start = jnp.floor(draws[20:] * (free + 1)).astype(jnp.int32)
    top, left = jnp.where(fits[first], start, free // 2)
    return top, left, height, width


def box_sizes(
    draws: jax.Array,
    size: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> jax.Array:
    """Return the sides of random boxes, with uniform area and log-uniform aspect.

    Args:
      draws: (2, N) uniform random numbers.
      size: height and width of the image.
      area: least and largest share of the image's area.
      ratio: least and largest aspect, width over height.

    Returns:
      Heights and widths, (2, N) int32, not limited to the image.
    """
    target = (area[0] + (area[1] - area[0]) * draws[0]) * (size[0] * size[1])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(low + (high - low) * draws[1])
    sides = jnp.stack([jnp.sqrt(target / aspect), jnp.sqrt(target * aspect)])
    return jnp.round(sides).astype(jnp.int32)


def crop_and_resize(
    image: jax.Array, box: Box, size: tuple[int, int], mirrored: jax.Array | bool = False
) -> jax.Array:
    """Cut a box out and resize it bicubically (Keys, 1981, a = -0.5), as Pillow does.

    Where the image shrinks, the kernel is widened against aliasing. Rows are resized first, then
    columns, with rounding to integers after each: two small matrix products, so that boxes can
    differ from image to image while all shapes stay fixed.

    Args:
      image: (H, W, C) uint8.
      box: the part to resize.
      size: height and width of the result.
      mirrored: whether to flip horizontally, which is free here.

    Returns:
      (height, width, C) uint8.
    """
    top, left, height, width = box
    across = resizing_weights(size[1], image.shape[1], left, width)  # (width, W)
    across = jnp.where(mirrored, across[::-1], across)
    down = resizing_weights(size[0], image.shape[0], top, height)  # (height, H)
    pixels = image.astype(jnp.float32)
    pixels = _rounded(jnp.einsum("ow,hwc->hoc", across, pixels, precision=lax.Precision.HIGHEST))
    pixels = _rounded(jnp.einsum("oh,hwc->owc", down, pixels, precision=lax.Precision.HIGHEST))
    return pixels.astype(jnp.uint8)


def _rounded(total: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor((total + 2 ** (WEIGHT_BITS - 1)) * 2**-WEIGHT_BITS), 0, 255)


def resizing_weights(
    out: int, size: int, start: jax.Array | int, length: jax.Array | int
) -> jax.Array:
    """Return the matrix that resizes a part of one axis, in units of 2**-14.

    Args:
      out: pixels of the result.
      size: pixels of the image along the axis.
      start: first pixel of the part that is resized.
      length: number of pixels of the part.

    Returns:
      (out, size) whole numbers as float32; each row sums to about 2**14.
    """
    scale = jnp.asarray(length, jnp.float32) / out
    widened = jnp.maximum(scale, 1.0)
    start = jnp.asarray(start, jnp.float32)
    center = start + (np.arange(out, dtype=np.float32)[:, None] + 0.5) * scale
    pixel = np.arange(size, dtype=np.float32)[None]
    first = jnp.maximum(jnp.floor(center - 2 * widened + 0.5), start)
    end = jnp.minimum(jnp.floor(center + 2 * widened + 0.5), start + length)
    weights = jnp.where(
        (pixel >= first) & (pixel < end),
        _cubic_kernel(jnp.asarray((pixel - center + 0.5) / widened)),
        0,
    )
    weights = weights / weights.sum(axis=1, keepdims=True)
    return jnp.round(weights * 2**WEIGHT_BITS)


def _cubic_kernel(x: jax.Array) -> jax.Array:
    """Evaluate Keys' cubic convolution kernel, a = -0.5, at distances in pixels."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def resize(images: jax.Array, size: int, crop_ratio: float = 1.0) -> jax.Array:
    """Resize the shorter side to `size / crop_ratio` and cut out the central square.

    Args:
      images: (B, H, W, C) uint8.
      size: side of the result in pixels.
      crop_ratio: share of the shorter side that is kept.

    Returns:
      (B, size, size, C) uint8.
    """
    height, width = images.shape[1:3]
    short, target = min(height, width), math.floor(size / crop_ratio)
    new = target * height // short, target * width // short
    if new != (height, width):
        whole = (0, 0, height, width)
        images = jax.vmap(lambda image: crop_and_resize(image, whole, new))(images)
    top, left = (round((side - size) / 2) for side in new)
    return images[:, top : top + size, left : left + size]


def shear_x(factor: jax.Array | float) -> jax.Array:
    """Return the matrix for `warp` that shifts each row in proportion to its y coordinate."""
    return _matrix(1.0, factor, 0.0, 0.0, 1.0, 0.0)


def shear_y(factor: jax.Array | float) -> jax.Array:
    """Return the matrix for `warp` that shifts each column in proportion to its x coordinate."""
    return _matrix(1.0, 0.0, 0.0, factor, 1.0, 0.0)


def translate_x(pixels: jax.Array | float) -> jax.Array:
    """Return the matrix for `warp` that shifts the image to the left."""
    return _matrix(1.0, 0.0, pixels, 0.0, 1.0, 0.0)


def translate_y(pixels: jax.Array | float) -> jax.Array:
    """Return the matrix for `warp` that shifts the image up."""
    return _matrix(1.0, 0.0, 0.0, 0.0, 1.0, pixels)


def rotate(degrees: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Return the matrix for `warp` that rotates counter-clockwise about the center.

    Args:
      degrees: angle, () float32.
      size: height and width of the image.
    """
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    y, x = size[0] / 2, size[1] / 2
    return _matrix(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _matrix(*entries: jax.Array | float) -> jax.Array:
    """Convert the entries (a, b, c, d, e, f) of an affine map to (6,) int32.

    The map x' = a x + b y + c, y' = d x + e y + f leads from the result to the image.
    """
    # Pixel centers lie at half-integers x and y, which `_source_coordinates` doubles: a, b, d and e
    # have half the unit of c and f.
    units = np.array([0.5, 0.5, 1.0, 0.5, 0.5, 1.0], np.float32) * 2**COORDINATE_BITS
    stacked = jnp.stack([jnp.asarray(x, jnp.float32) for x in entries])
    return jnp.round(stacked * units).astype(jnp.int32)


def warp(image: jax.Array, matrix: jax.Array, fill: tuple[int, ...]) -> jax.Array:
    """Apply an affine transform with bicubic interpolation (a = -1), as Pillow does.

    Args:
      image: (H, W, 3) uint8.
      matrix: (6,) int32 from one of the functions above.
      fill: color of pixels whose source lies outside the image.

    Returns:
      (H, W, 3) uint8.
    """
    height, width, _ = image.shape
    from_x, from_y, inside = _source_coordinates(matrix, (height, width))
    # Four neighbors in a row are packed into the bytes of one word, for a quarter of the gathers.
    # Words begin at column -2, the leftmost that the kernel of a point inside the image reaches.
    padded = jnp.pad(image, ((0, 0), (2, 2), (0, 0)), mode="edge").astype(jnp.uint32)
    packed = [padded[:, i : i + width + 1] << (8 * i) for i in range(4)]
    words = packed[0] + packed[1] + packed[2] + packed[3]  # (H, W + 1, 3) uint32
    column, weights_x = _taps(from_x)
    row, weights_y = _taps(from_y)
    column = jnp.clip(column + 1, 0, width)
    rows = jnp.stack([jnp.clip(row + i, 0, height - 1) for i in (-1, 0, 1, 2)])
    sources = rows * (width + 1) + column[None]  # (4, H, W): of the words in each of four rows

    def add_row(total: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        source, weight_y = row
        word = words.reshape(-1, 3).at[source].get(mode="promise_in_bounds")
        taps = [((word >> (8 * i)) & 255).astype(jnp.int32) for i in range(4)]
        mixed = sum(tap * weight[..., None] for tap, weight in zip(taps, weights_x, strict=True))
        return total + mixed * weight_y[..., None], None

    # In a loop, because XLA on CPUs would otherwise fuse the packing into each of the gathers.
    total = lax.scan(add_row, jnp.zeros(image.shape, jnp.int32), (sources, jnp.stack(weights_y)))[0]
    pixels = jnp.clip(total >> (2 * TAP_BITS), 0, 255).astype(jnp.uint8)
    return jnp.where(inside[..., None], pixels, np.array(fill, np.uint8)[None, None])


def warp_along_x(image: jax.Array, matrix: jax.Array, fill: tuple[int, ...]) -> jax.Array:
    """Return the same as `warp` for a shear or a translation along x, from whole rows: faster."""
    height, width, channels = image.shape
    from_x, _, inside = _source_coordinates(matrix, (height, width))
    column, weights = _taps(from_x[:, 0])
    # All pixels of a row are shifted equally; a shift by more than the width leaves none inside.
    reach = width + 2
    padded = jnp.pad(image, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    start = jnp.clip(column - 1 + reach, 0, 2 * width + 1) * channels
    length = (width + 3) * channels
    cut = jax.vmap(lambda row, first: lax.dynamic_slice(row, (first,), (length,)))
    rows = cut(padded.reshape(height, -1), start)
    shifted = [rows[:, i * channels : (i + width) * channels].astype(jnp.int32) for i in range(4)]
    parts = [row * weight[:, None] for row, weight in zip(shifted, weights, strict=True)]
    total = parts[0] + parts[1] + parts[2] + parts[3]
    pixels = jnp.clip(total >> TAP_BITS, 0, 255).astype(jnp.uint8).reshape(image.shape)
    return jnp.where(inside[..., None], pixels, np.array(fill, np.uint8)[None, None])


def warp_along_y(image: jax.Array, matrix: jax.Array, fill: tuple[int, ...]) -> jax.Array:
    """Return the same as `warp` for a shear or a translation along y: faster."""
    transposed = matrix[np.array([4, 3, 5, 1, 0, 2])]
    return warp_along_x(image.swapaxes(0, 1), transposed, fill).swapaxes(0, 1)


def _source_coordinates(
    matrix: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return x and y of the source of each pixel's center, and whether it lies in the image.

    All are (H, W); coordinates are int32 in units of 2**-16 pixels.
    """
    x = 2 * np.arange(size[1], dtype=np.int32)[None, :] + 1
    y = 2 * np.arange(size[0], dtype=np.int32)[:, None] + 1
    a, b, c, d, e, f = matrix
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < size[1] << COORDINATE_BITS)
    inside &= (from_y >= 0) & (from_y < size[0] << COORDINATE_BITS)
    return from_x, from_y, inside


def _taps(coordinate: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return the pixel before a coordinate, and the bicubic weights of the four around it.

    The weights are those of the pixels -1, 0, 1 and 2 after that one, in units of 2**-10.
    """
    coordinate = coordinate - (1 << (COORDINATE_BITS - 1))
    spare = COORDINATE_BITS - TAP_BITS
    after = (coordinate & ((1 << COORDINATE_BITS) - 1)) >> spare
    before = (1 << TAP_BITS) - after
    half = 1 << (2 * TAP_BITS - 1)
    outer_left = -((after * before * before + half) >> (2 * TAP_BITS))
    outer_right = -((after * after * before + half) >> (2 * TAP_BITS))
    # The four add up to exactly 1.
    weights = (outer_left, before - outer_left, after - outer_right, outer_right)
    return coordinate >> COORDINATE_BITS, weights


def rotate_and_scale(image: jax.Array, angle: jax.Array, scale: jax.Array) -> jax.Array:
    """Rotate and scale an image about its center, bilinearly, with black outside.

    Args:
      image: (H, W, C).
      angle: in degrees, counter-clockwise.
      scale: 2 shows everything twice as large.

    Returns:
      (H, W, C) float32.
    """
    height, width = image.shape[:2]
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - middle_y, jnp.arange(width) - middle_x, indexing="ij")
    cos, sin = jnp.cos(jnp.deg2rad(angle)) / scale, jnp.sin(jnp.deg2rad(angle)) / scale
    sources = [cos * y + sin * x + middle_y, cos * x - sin * y + middle_x]
    channels = image.astype(jnp.float32)
    return jax.vmap(lambda channel: map_coordinates(channel, sources, order=1), -1, -1)(channels)
