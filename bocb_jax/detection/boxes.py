"""Boxes (..., 4) as (x1, y1, x2, y2) in pixels: overlap, encoding relative to anchors, clipping."""

import math

import jax
import jax.numpy as jnp

# Largest change of a logarithmic side in decoding.
MAX_LOG_RATIO = math.log(1000 / 16)
_MIN_AREA = 1e-6  # floor of the denominators


def area(boxes: jax.Array) -> jax.Array:
    """Return the areas (...) of boxes (..., 4)."""
    size = boxes[..., 2:] - boxes[..., :2]
    return size[..., 0] * size[..., 1]


def _overlap_and_union(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:])
    size = jnp.maximum(high - low, 0)
    overlap = size[..., 0] * size[..., 1]
    return overlap, jnp.maximum(area(a) + area(b) - overlap, _MIN_AREA)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the intersection over union (...) of boxes (..., 4) that broadcast to each other."""
    overlap, union = _overlap_and_union(a, b)
    return overlap / union


def pairwise_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the intersection over union (n, m) of all pairs of boxes (n, 4) and (m, 4)."""
    return iou(a[:, None], b[None])


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the generalized IoU (...) of boxes (..., 4) (Rezatofighi et al., 2019, 1902.09630)."""
    overlap, union = _overlap_and_union(a, b)
    low = jnp.minimum(a[..., :2], b[..., :2])
    high = jnp.maximum(a[..., 2:], b[..., 2:])
    size = jnp.maximum(high - low, 0)
    enclosing = jnp.maximum(size[..., 0] * size[..., 1], _MIN_AREA)
    return overlap / union - (enclosing - union) / enclosing


def _centers_and_sides(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]


def encode(anchors: jax.Array, boxes: jax.Array) -> jax.Array:
    """Return boxes relative to anchors (Girshick et al., 2014, arXiv:1311.2524).

    Args:
      anchors: (..., 4).
      boxes: (..., 4), of positive size.

    Returns:
      (..., 4): shift of the center over the anchor's sides in x and y, and the logarithms of the
      ratios of widths and heights.
    """
    center, sides = _centers_and_sides(anchors)
    box_center, box_sides = _centers_and_sides(boxes)
    return jnp.concatenate([(box_center - center) / sides, jnp.log(box_sides / sides)], -1)


def decode(anchors: jax.Array, deltas: jax.Array, *, clamp_below: bool = True) -> jax.Array:
    """Return the boxes (..., 4) that `encode` turned into `deltas`.

    Args:
      anchors: (..., 4).
      deltas: (..., 4).
      clamp_below: limit the logarithmic ratios of sides to +-`MAX_LOG_RATIO`, not from above alone.
    """
    center, sides = _centers_and_sides(anchors)
    lowest = -MAX_LOG_RATIO if clamp_below else -jnp.inf
    center = center + sides * deltas[..., :2]
    half = sides * jnp.exp(jnp.clip(deltas[..., 2:], lowest, MAX_LOG_RATIO)) * 0.5
    return jnp.concatenate([center - half, center + half], -1)


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
    """Return boxes (..., 4) cut at the edges of an image of `size` (height, width)."""
    height, width = size[0], size[1]
    largest = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, largest.reshape((1,) * (boxes.ndim - 1) + (4,)))
