"""Anchors: boxes of fixed sizes at every position of every map of a pyramid.

The order is that of the head's outputs: level by level, row by row, and at a position ratio by
ratio with all sizes of a ratio together.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bocb_jax.detection.rules import Rules

Size = tuple[int, int]  # (height, width)


def base_anchors(stride: int, rules: Rules) -> np.ndarray:
    """Return the anchors (anchors per cell, 4) of a level around the origin."""
    octave = 2.0 ** (np.arange(rules.scales_per_octave) / rules.scales_per_octave)
    sizes = (rules.anchor_scale * octave * (stride if rules.whole_sides else 1)).astype(np.float32)
    if rules.whole_sides:
        sizes = np.floor(sizes)
    ratios = np.sqrt(np.asarray(rules.ratios, np.float32))
    scale = np.float32(1 if rules.whole_sides else stride)
    widths = ((scale * (1 / ratios))[:, None] * sizes).ravel()
    heights = ((scale * ratios)[:, None] * sizes).ravel()
    half = np.stack([widths, heights], -1) * np.float32(0.5)
    found = np.concatenate([-half, half], -1)
    return np.round(found) if rules.whole_sides else found


def anchors(
    map_sizes: Sequence[Size], strides: Sequence[int], image_size: Size, rules: Rules
) -> jax.Array:
    """Return all anchors (anchors, 4) of a batch, in float32.

    The anchors of the first cell are centered at the image's corner (0, 0).

    Args:
      map_sizes: (height, width) of the map of each level.
      strides: of each level, in pixels.
      image_size: (height, width) of the padded images of the batch.
      rules: of the detector.
    """
    found = []
    for size, stride in zip(map_sizes, strides, strict=True):
        step = spacing(size, stride, image_size, rules)
        y, x = (np.arange(n, dtype=np.float32) * s for n, s in zip(size, step, strict=True))
        corner = np.stack([*np.meshgrid(x, y)] * 2, -1)  # (height, width, 4)
        cells = jnp.asarray(corner)[:, :, None] + base_anchors(stride, rules)[None, None]
        found.append(cells.reshape(-1, 4))
    return jnp.concatenate(found)


def inside(
    map_sizes: Sequence[Size],
    strides: Sequence[int],
    image_size: Size,
    padded_size: jax.Array,
    rules: Rules,
) -> jax.Array:
    """Return which anchors (anchors,) belong to the cells of one image of a batch.

    Args:
      map_sizes, strides, image_size, rules: as for `anchors`.
      padded_size: (height, width) of this image with its own padding, without that which the batch
        adds.
    """
    found = []
    for size, stride in zip(map_sizes, strides, strict=True):
        step = spacing(size, stride, image_size, rules)
        rows, columns = (
            jnp.arange(n) * s < side for n, s, side in zip(size, step, padded_size, strict=True)
        )
        cells = rows[:, None] & columns[None]
        if rules.batch_padding:
            cells = jnp.ones_like(cells)
        found.append(jnp.repeat(cells.ravel(), rules.anchors_per_cell))
    return jnp.concatenate(found)


def spacing(size: Size, stride: int, image_size: Size, rules: Rules) -> Size:
    """Return the distance in y and in x between the cells of a level, in pixels."""
    if not rules.strides_from_maps:
        return stride, stride
    return image_size[0] // size[0], image_size[1] // size[1]
