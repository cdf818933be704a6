"""Losses of a one-stage detector: focal loss of the classes, L1 or GIoU loss of the boxes."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bocb_jax.detection.assignment import Targets
from bocb_jax.detection.boxes import decode, giou
from bocb_jax.detection.rules import Rules
from bocb_jax.errors import UserError

_EPSILON = float(jnp.finfo(jnp.float32).eps)


class Losses(NamedTuple):
    """The two losses by level; the sum of all is what is minimized."""

    classes: jax.Array  # (levels,)
    boxes: jax.Array  # (levels,)

    @property
    def total(self) -> jax.Array:
        """Sum over both losses and all levels, ()."""
        return self.classes.sum() + self.boxes.sum()


def focal_loss(
    logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """Return the focal loss of every logit (Lin et al., 2017, arXiv:1708.02002), in float32.

    Args:
      logits: of any shape.
      targets: of the same shape, 0 or 1.
      alpha: weight where the target is 1; elsewhere 1 - alpha.
      gamma: exponent of the probability of the wrong answer.
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    probability = jax.nn.sigmoid(logits)
    wrong = probability + targets * (1 - 2 * probability)
    weight = (alpha * targets + (1 - alpha) * (1 - targets)) * wrong**gamma
    return weight * (jax.nn.softplus(logits) - targets * logits)


def by_anchor(level: jax.Array, channels: int) -> jax.Array:
    """Return a map (B, H, W, anchors per cell * channels) as (B, anchors, channels)."""
    return level.reshape(level.shape[0], -1, channels)


def detection_losses(
    class_maps: Sequence[jax.Array],
    box_maps: Sequence[jax.Array],
    anchors: jax.Array,
    targets: Targets,
    rules: Rules,
) -> Losses:
    """Return the losses of a batch, divided by the numbers of positive anchors.

    Args:
      class_maps: logits of each level (B, H, W, anchors per cell * classes).
      box_maps: encoded boxes of each level (B, H, W, anchors per cell * 4).
      anchors: (anchors, 4) of all levels.
      targets: of a batch, (B, anchors, ...).
      rules: of the detector.
    """
    weight = image_weights(targets.positive, rules.group)
    classes, boxes, start = [], [], 0
    for class_map, box_map in zip(class_maps, box_maps, strict=True):
        deltas = by_anchor(box_map, 4).astype(jnp.float32)
        stop = start + deltas.shape[1]
        part = jax.tree.map(lambda x, a=start, b=stop: x[:, a:b], targets)
        logits = by_anchor(class_map, class_map.shape[-1] // (box_map.shape[-1] // 4))
        classes.append(jnp.sum(weight * _class_loss(logits, part, rules)))
        boxes.append(jnp.sum(weight * _box_loss(deltas, anchors[start:stop], part, rules)))
        start = stop
    return Losses(jnp.stack(classes), jnp.stack(boxes))


def image_weights(positive: jax.Array, group: int) -> jax.Array:
    """Return the weight (B,) of each image's summed loss.

    A group of images shares one denominator, the sum of their numbers of positive anchors (at
    least 1 each), as two images on one GPU do in MMDetection; the groups are averaged.

    Args:
      positive: (B, anchors) bool.
      group: consecutive images of a group; a smaller batch is one group.

    Raises:
      UserError: the batch does not divide into groups.
    """
    batch = positive.shape[0]
    group = min(group, batch)
    if batch % group:
        raise UserError(
            f"A batch of {batch} images does not divide into groups of {group}, over which the "
            "losses are normalized; choose a multiple."
        )
    count = jnp.maximum(positive.sum(1), 1).astype(jnp.float32)
    total = count.reshape(-1, group).sum(1)
    return jnp.repeat(1 / (total + _EPSILON), group) * (group / batch)


def _class_loss(logits: jax.Array, part: Targets, rules: Rules) -> jax.Array:
    """Return the focal loss of each image (B,), summed over trained anchors and classes."""
    wanted = part.labels
    if wanted.ndim == 2:
        wanted = wanted[..., None] == jnp.arange(logits.shape[-1])[None, None]
    loss = focal_loss(logits, wanted, rules.focal_alpha, rules.focal_gamma)
    return jnp.where(part.trained[..., None], loss, 0.0).sum((1, 2))


def _box_loss(deltas: jax.Array, anchors: jax.Array, part: Targets, rules: Rules) -> jax.Array:
    """Return the box loss of each image (B,), summed over positive anchors."""
    positive = part.positive[..., None]
    # Predictions elsewhere may be anything, also infinite: they are replaced before the loss.
    deltas = jnp.where(positive, deltas, part.deltas)
    if rules.box_loss == "l1":
        return jnp.abs(deltas - part.deltas).sum((1, 2))
    boxes = decode(anchors[None], deltas, clamp_below=rules.clamp_below)
    return jnp.where(part.positive, 1 - giou(boxes, part.boxes), 0.0).sum(1)
