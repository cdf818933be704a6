"""Which anchor is trained for which box, and what the head should say there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bocb_jax.detection.boxes import encode, pairwise_iou
from bocb_jax.detection.rules import Rules

OUTSIDE, IGNORED, NEGATIVE = -2, -1, 0  # a positive anchor of box j has the number j + 1


class Assignment(NamedTuple):
    """The box of each anchor of an image."""

    number: jax.Array  # (anchors,) int32: j + 1 for box j, or one of the constants above
    iou: jax.Array  # (anchors,): largest overlap with a box, 0 without boxes and outside


class Targets(NamedTuple):
    """What the head is trained to say; a leading axis for the images of a batch."""

    # (anchors,) int32: the class of the box, -1 for no class; or, where they are not from boxes,
    # (anchors, classes) bool, any number of classes
    labels: jax.Array
    trained: jax.Array  # (anchors,) bool: positive or negative
    positive: jax.Array  # (anchors,) bool
    boxes: jax.Array  # (anchors, 4): the box of a positive anchor, else the anchor itself
    deltas: jax.Array  # (anchors, 4): that box encoded, else 0


def assign(
    anchors: jax.Array, boxes: jax.Array, real: jax.Array, inside: jax.Array, rules: Rules
) -> Assignment:
    """Assign anchors to the boxes of one image by their overlap.

    An anchor whose largest overlap reaches `positive_iou` gets that box, the first one at ties.
    Besides, every box gets the anchors with which it overlaps most, however little, as
    `rules.low_quality` says. A box that overlaps with no anchor gets none, where MMDetection would
    give it every anchor that overlaps with no box.

    Args:
      anchors: (anchors, 4).
      boxes: (boxes, 4), padded.
      real: (boxes,) bool: which boxes are no padding.
      inside: (anchors,) bool: which anchors belong to this image.
      rules: of the detector.
    """
    overlap = pairwise_iou(anchors, boxes)
    overlap = jnp.where(real[None] & inside[:, None], overlap, -1.0)
    # Computed once: the comparison below is of bits, and XLA may round a second copy differently.
    overlap = jax.lax.optimization_barrier(overlap)
    largest, first = overlap.max(1, initial=-1.0), _first_best(overlap)
    found = jnp.maximum(largest, 0.0)
    number = jnp.where(found < rules.negative_iou, NEGATIVE, IGNORED)
    number = jnp.where(found >= rules.positive_iou, first + 1, number)

    best = overlap.max(0, initial=-1.0)  # of each box
    is_best = (overlap == best[None]) & (best > 0)[None]
    if rules.low_quality == "box":
        count = boxes.shape[0]
        last = count - 1 - _first_best(is_best[:, ::-1])
    else:
        last = first
    number = jnp.where(is_best.any(1), last + 1, number)
    return Assignment(jnp.where(inside, number, OUTSIDE).astype(jnp.int32), found)


def _first_best(x: jax.Array) -> jax.Array:
    """Return the index of the first largest entry of each row; 0 where there are no columns."""
    return jnp.argmax(x, 1) if x.shape[1] else jnp.zeros(x.shape[0], jnp.int32)


def targets(
    anchors: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    real: jax.Array,
    inside: jax.Array,
    rules: Rules,
) -> Targets:
    """Return what the head should say for one image; `jax.vmap` for a batch.

    Args:
      anchors: (anchors, 4).
      boxes: (boxes, 4), padded.
      labels: (boxes,) classes, from 0.
      real: (boxes,) bool: which boxes are no padding.
      inside: (anchors,) bool: which anchors belong to this image.
      rules: of the detector.
    """
    number = assign(anchors, boxes, real, inside, rules).number
    positive = number > 0
    if boxes.shape[0] == 0:
        boxes, labels = jnp.zeros((1, 4), anchors.dtype), jnp.zeros(1, jnp.int32)
    index = jnp.maximum(number - 1, 0)
    own = jnp.where(positive[:, None], boxes[index], anchors)
    return Targets(
        labels=jnp.where(positive, labels[index], -1).astype(jnp.int32),
        trained=number >= NEGATIVE,
        positive=positive,
        boxes=own,
        deltas=jnp.where(positive[:, None], encode(anchors, own), 0.0),
    )
