"""Crops, mirrors, resizing and affine maps of images, as Pillow's.

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

WEIGHT_BITS = 14  # of resizing: 8 bits of a pixel and these are exact in float32
PLACE_BITS = 16  # of the fraction of a coordinate
TAP_BITS = 10  # of the weights in `warp`: twice these and 8 bits of a pixel fit in int32


def flip(image: jax.Array, mirrored: jax.Array) -> jax.Array:
    """An image (H, W, C), mirrored left and right or not."""
    return jnp.where(mirrored, image[:, ::-1], image)


def padded_crop(
    image: jax.Array, down: jax.Array, right: jax.Array, pad: int, mode: str
) -> jax.Array:
    """The image's size cut out of the image with `pad` more pixels on each side.

    Args:
      image: (H, W, C).
      down: row where the crop starts in the padded image, 0 ... 2 pad.
      right: column where it starts.
      pad: pixels.
      mode: "zero" for black, or "reflect" about the outermost pixels.
    """
    how = {"zero": "constant", "reflect": "reflect"}[mode]
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=how)
    return lax.dynamic_slice(padded, (down, right, 0), image.shape)


def resized_crop_box(
    draws: jax.Array,
    size: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """A random box as torchvision's RandomResizedCrop draws it.

    Up to ten boxes of random area and aspect are tried, and the central one is taken if none fits.

    Args:
      draws: (22,) uniform random numbers.
      size: height and width of the image.
      area: lowest and highest share of the image's area.
      ratio: lowest and highest width by height.

    Returns:
      top, left, height, width, as int32 scalars.
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
    """Heights and widths of random boxes, of even area and log-even aspect.

    Args:
      draws: (2, N) uniform random numbers.
      size: height and width of the image.
      area: lowest and highest share of the image's area.
      ratio: lowest and highest width by height.

    Returns:
      (2, N) int32.
    """
    target = (area[0] + (area[1] - area[0]) * draws[0]) * (size[0] * size[1])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(low + (high - low) * draws[1])
    sides = jnp.stack([jnp.sqrt(target / aspect), jnp.sqrt(target * aspect)])
    return jnp.round(sides).astype(jnp.int32)


def crop_and_resize(image: jax.Array, box, size: tuple[int, int], mirrored=False) -> jax.Array:
    """Cuts a box out and resizes it bicubically (Keys, 1981, a = -0.5), as Pillow would.

    The kernel is widened against aliasing where the image shrinks, and only there. Rows first,
    then columns, rounded to integers after each. As two small matrix products, so that the box
    may differ from image to image while all shapes stay fixed.

    Args:
      image: (H, W, C) uint8.
      box: top, left, height and width.
      size: height and width of the result.
      mirrored: whether left and right change places, which costs nothing here.
    """
    top, left, height, width = box
    across = resizing_weights(size[1], image.shape[1], left, width)
    across = jnp.where(mirrored, across[::-1], across)
    down = resizing_weights(size[0], image.shape[0], top, height)
    pixels = image.astype(jnp.float32)
    pixels = _rounded(jnp.einsum("ow,hwc->hoc", across, pixels, precision=lax.Precision.HIGHEST))
    pixels = _rounded(jnp.einsum("oh,hwc->owc", down, pixels, precision=lax.Precision.HIGHEST))
    return pixels.astype(jnp.uint8)


def _rounded(total: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor((total + 2 ** (WEIGHT_BITS - 1)) * 2**-WEIGHT_BITS), 0, 255)


def resizing_weights(out: int, size: int, start, length) -> jax.Array:
    """(out, size) whole numbers as float32: what each pixel adds to each pixel of the result.

    Args:
      out: pixels of the result.
      size: pixels of the image.
      start: where the part begins that is resized.
      length: how long it is.
    """
    scale = jnp.asarray(length, jnp.float32) / out
    widened = jnp.maximum(scale, 1.0)
    start = jnp.asarray(start, jnp.float32)
    center = start + (np.arange(out, dtype=np.float32)[:, None] + 0.5) * scale
    place = np.arange(size, dtype=np.float32)[None]
    first = jnp.maximum(jnp.floor(center - 2 * widened + 0.5), start)
    end = jnp.minimum(jnp.floor(center + 2 * widened + 0.5), start + length)
    weights = jnp.where(
        (place >= first) & (place < end), _keys((place - center + 0.5) / widened), 0
    )
    weights = weights / weights.sum(axis=1, keepdims=True)
    return jnp.round(weights * 2**WEIGHT_BITS)


def _keys(x):
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def resize(images: jax.Array, size: int, crop_ratio: float = 1.0) -> jax.Array:
    """Resizes the shorter side to `size` / `crop_ratio` and cuts out the central square.

    Args:
      images: (B, H, W, C) uint8.
      size: side of the result.
      crop_ratio: share of the shorter side that is kept.

    Returns:
      (B, size, size, C) uint8.
    """
    height, width = images.shape[1:3]
    short, target = min(height, width), math.floor(size / crop_ratio)
    new = tuple(target * side // short for side in (height, width))
    if new != (height, width):
        whole = (0, 0, height, width)
        images = jax.vmap(lambda image: crop_and_resize(image, whole, new))(images)
    top, left = (round((side - size) / 2) for side in new)
    return images[:, top : top + size, left : left + size]


def shear_x(factor: jax.Array) -> jax.Array:
    """Matrix for `warp`: columns move by `factor` times the row."""
    return _matrix(1.0, factor, 0.0, 0.0, 1.0, 0.0)


def shear_y(factor: jax.Array) -> jax.Array:
    """Matrix for `warp`: rows move by `factor` times the column."""
    return _matrix(1.0, 0.0, 0.0, factor, 1.0, 0.0)


def translate_x(pixels: jax.Array) -> jax.Array:
    """Matrix for `warp`: to the left by `pixels`."""
    return _matrix(1.0, 0.0, pixels, 0.0, 1.0, 0.0)


def translate_y(pixels: jax.Array) -> jax.Array:
    """Matrix for `warp`: up by `pixels`."""
    return _matrix(1.0, 0.0, 0.0, 0.0, 1.0, pixels)


def rotate(degrees: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Matrix for `warp`: counter-clockwise about the centre."""
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    y, x = size[0] / 2, size[1] / 2
    return _matrix(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _matrix(a, b, c, d, e, f) -> jax.Array:
    """(6,) int32 for x' = a x + b y + c, y' = d x + e y + f, from the result to the image."""
    # Pixel centres lie at half numbers: a, b, d and e come in halves of the unit of c and f.
    units = np.float32([0.5, 0.5, 1.0, 0.5, 0.5, 1.0]) * 2**PLACE_BITS
    entries = jnp.stack([jnp.asarray(x, jnp.float32) for x in (a, b, c, d, e, f)])
    return jnp.round(entries * units).astype(jnp.int32)


def warp(image: jax.Array, matrix: jax.Array, fill: tuple[int, ...]) -> jax.Array:
    """Pillow's bicubic affine transform (a = -1): where each pixel comes from, and its mixture.

    Args:
      image: (H, W, 3) uint8.
      matrix: (6,) int32 from one of the functions above.
      fill: three values for pixels that come from outside the image.
    """
    height, width, _ = image.shape
    from_x, from_y, inside = _sources(matrix, (height, width))
    # Four neighbours along the row lie in the four bytes of a word: a quarter of the look-ups.
    # They begin at column -2, as far to the left of the image as an inside point can reach.
    padded = jnp.pad(image, ((0, 0), (2, 2), (0, 0)), mode="edge").astype(jnp.uint32)
    words = sum(padded[:, i : i + width + 1] << (8 * i) for i in range(4))
    column, weights_x = _taps(from_x)
    row, weights_y = _taps(from_y)
    column = jnp.clip(column + 1, 0, width)
    rows = jnp.stack([jnp.clip(row + i, 0, height - 1) for i in (-1, 0, 1, 2)])
    places = rows * (width + 1) + column[None]

    def add_row(total, place_and_weight):
        place, weight_y = place_and_weight
        word = words.reshape(-1, 3).at[place].get(mode="promise_in_bounds")
        taps = [((word >> (8 * i)) & 255).astype(jnp.int32) for i in range(4)]
        mixed = sum(tap * weight[..., None] for tap, weight in zip(taps, weights_x, strict=True))
        return total + mixed * weight_y[..., None], None

    # In a loop: compilers for CPUs would otherwise put each word together anew at each look-up.
    total = lax.scan(add_row, jnp.zeros(image.shape, jnp.int32), (places, jnp.stack(weights_y)))[0]
    pixels = jnp.clip(total >> (2 * TAP_BITS), 0, 255).astype(jnp.uint8)
    return jnp.where(inside[..., None], pixels, np.array(fill, np.uint8)[None, None])


def warp_along_x(image: jax.Array, matrix: jax.Array, fill: tuple[int, ...]) -> jax.Array:
    """What `warp` gives for a shear or a translation along x, from whole rows: much quicker."""
    height, width, channels = image.shape
    from_x, _, inside = _sources(matrix, (height, width))
    column, weights = _taps(from_x[:, 0])
    # All pixels of a row come from equally far away; no pixel of the image, from more than a
    # width away.
    reach = width + 2
    padded = jnp.pad(image, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    start = jnp.clip(column - 1 + reach, 0, 2 * width + 1) * channels
    taken = (width + 3) * channels
    take = jax.vmap(lambda row, place: lax.dynamic_slice(row, (place,), (taken,)))
    rows = take(padded.reshape(height, -1), start)
    shifted = [rows[:, i * channels : (i + width) * channels].astype(jnp.int32) for i in range(4)]
    total = sum(row * weight[:, None] for row, weight in zip(shifted, weights, strict=True))
    pixels = jnp.clip(total >> TAP_BITS, 0, 255).astype(jnp.uint8).reshape(image.shape)
    return jnp.where(inside[..., None], pixels, np.array(fill, np.uint8)[None, None])


def warp_along_y(image: jax.Array, matrix: jax.Array, fill: tuple[int, ...]) -> jax.Array:
    """What `warp` gives for a shear or a translation along y."""
    turned = matrix[np.array([4, 3, 5, 1, 0, 2])]
    return warp_along_x(image.swapaxes(0, 1), turned, fill).swapaxes(0, 1)


def _sources(matrix: jax.Array, size: tuple[int, int]):
    """Where the centre of each pixel comes from, in units of 2**-16, and whether that is inside."""
    x = 2 * np.arange(size[1], dtype=np.int32)[None, :] + 1
    y = 2 * np.arange(size[0], dtype=np.int32)[:, None] + 1
    a, b, c, d, e, f = matrix
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < size[1] << PLACE_BITS)
    inside &= (from_y >= 0) & (from_y < size[0] << PLACE_BITS)
    return from_x, from_y, inside


def _taps(place: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The pixel before a coordinate, and the weights from the one before it to the third after."""
    place = place - (1 << (PLACE_BITS - 1))
    spare = PLACE_BITS - TAP_BITS
    after = (place & ((1 << PLACE_BITS) - 1)) >> spare
    before = (1 << TAP_BITS) - after
    half = 1 << (2 * TAP_BITS - 1)
    outer_left = -((after * before * before + half) >> (2 * TAP_BITS))
    outer_right = -((after * after * before + half) >> (2 * TAP_BITS))
    # The four add up to one exactly.
    return place >> PLACE_BITS, (outer_left, before - outer_left, after - outer_right, outer_right)


def turn_and_scale(image: jax.Array, angle: jax.Array, size: jax.Array) -> jax.Array:
    """Turns and scales an image about its centre, bilinearly; what comes in is black.

    Args:
      image: (H, W, C).
      angle: in degrees, counter-clockwise.
      size: 2 shows everything twice as large.

    Returns:
      A float32 image of the same shape.
    """
    height, width = image.shape[:2]
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - middle_y, jnp.arange(width) - middle_x, indexing="ij")
    cos, sin = jnp.cos(jnp.deg2rad(angle)) / size, jnp.sin(jnp.deg2rad(angle)) / size
    # Where each pixel of the result comes from.
    place = [cos * y + sin * x + middle_y, cos * x - sin * y + middle_x]
    channels = image.astype(jnp.float32)
    return jax.vmap(lambda channel: map_coordinates(channel, place, order=1), -1, -1)(channels)
