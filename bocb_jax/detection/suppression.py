"""Non-maximum suppression by class, of static shape."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bocb_jax.detection.boxes import iou


class Kept(NamedTuple):
    """The boxes that remain, the best first."""

    candidate: jax.Array  # (kept,) int32: its number; 0 behind the last one
    real: jax.Array  # (kept,) bool: False behind the last one


def suppress(
    boxes: jax.Array, scores: jax.Array, labels: jax.Array, *, threshold: float, kept: int
) -> Kept:
    """Return the best boxes of an image that do not overlap with a better one of their class.

    This is greedy suppression, ended after `kept` boxes: one pass over the candidates for each box
    that is kept, in place of a matrix of all pairs. At equal scores the first candidate wins.

    Args:
      boxes: (candidates, 4).
      scores: (candidates,); those of no candidates are -inf.
      labels: (candidates,) classes.
      threshold: intersection over union above which the worse box is dropped.
      kept: most boxes that remain.
    """
    numbers = jnp.arange(scores.shape[0])

    def keep_next(scores: jax.Array, _: None) -> tuple[jax.Array, Kept]:
        best = jnp.argmax(scores)
        dropped = (iou(boxes[best][None], boxes) > threshold) & (labels == labels[best])
        left = jnp.where(dropped | (numbers == best), -jnp.inf, scores)
        real = scores[best] > -jnp.inf
        return left, Kept(jnp.where(real, best, 0).astype(jnp.int32), real)

    return jax.lax.scan(keep_next, scores, None, length=kept)[1]
