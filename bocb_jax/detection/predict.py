"""From the maps of a head to the boxes of an image."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bocb_jax.detection.boxes import clip, decode
from bocb_jax.detection.losses import by_anchor
from bocb_jax.detection.rules import Rules
from bocb_jax.detection.suppression import suppress


class Detections(NamedTuple):
    """The boxes found in an image, the best first; a leading axis for a batch."""

    boxes: jax.Array  # (kept, 4) in pixels of the original image
    scores: jax.Array  # (kept,); 0 behind the last box
    labels: jax.Array  # (kept,) int32; -1 behind the last box


class _Candidates(NamedTuple):
    boxes: jax.Array  # (candidates, 4)
    scores: jax.Array  # (candidates,); -inf for none
    labels: jax.Array  # (candidates,)


def detect(
    class_maps: Sequence[jax.Array],
    box_maps: Sequence[jax.Array],
    anchors: jax.Array,
    image_sizes: jax.Array,
    scale_factors: jax.Array,
    rules: Rules,
) -> Detections:
    """Return the boxes of each image of a batch.

    Args:
      class_maps: logits of each level (B, H, W, anchors per cell * classes).
      box_maps: encoded boxes of each level (B, H, W, anchors per cell * 4).
      anchors: (anchors, 4) of all levels.
      image_sizes: (B, 2) height and width of each resized image, without padding.
      scale_factors: (B, 2) resized over original size, of height and width.
      rules: of the detector.
    """
    levels, start = [], 0
    for class_map, box_map in zip(class_maps, box_maps, strict=True):
        deltas = by_anchor(box_map, 4).astype(jnp.float32)
        stop = start + deltas.shape[1]
        logits = by_anchor(class_map, class_map.shape[-1] // (box_map.shape[-1] // 4))
        levels.append((logits.astype(jnp.float32), deltas, anchors[start:stop]))
        start = stop

    def one_image(
        maps: list[tuple[jax.Array, jax.Array]], size: jax.Array, factor: jax.Array
    ) -> Detections:
        found = [
            _candidates(logits, deltas, level[2], size, rules)
            for (logits, deltas), level in zip(maps, levels, strict=True)
        ]
        boxes, scores, labels = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
        boxes = boxes / jnp.tile(factor[::-1], 2)[None]
        left = suppress(boxes, scores, labels, threshold=rules.nms_iou, kept=rules.kept)
        number, real = left.candidate, left.real
        return Detections(
            jnp.where(real[:, None], boxes[number], 0.0),
            jnp.where(real, scores[number], 0.0),
            jnp.where(real, labels[number], -1).astype(jnp.int32),
        )

    maps = [(logits, deltas) for logits, deltas, _ in levels]
    return jax.vmap(one_image)(maps, image_sizes, scale_factors)


def _candidates(
    logits: jax.Array, deltas: jax.Array, anchors: jax.Array, size: jax.Array, rules: Rules
) -> _Candidates:
    """Return the best pairs of anchor and class of one level of one image.

    The best k pairs lie on the k anchors whose best classes score highest, so those anchors are
    chosen first: sorting all pairs of COCO's 80 classes would take far longer.

    Args:
      logits: (anchors, classes).
      deltas: (anchors, 4).
      anchors: (anchors, 4).
      size: (height, width) of the image.
      rules: of the detector.
    """
    count, classes = logits.shape
    scores = jax.nn.sigmoid(logits)
    most = min(rules.candidates, count)
    # In their order, so that equal scores are ordered as if all pairs had been sorted.
    chosen = jnp.sort(jax.lax.top_k(scores.max(1), most)[1])
    pairs = scores[chosen].ravel()
    best, index = jax.lax.top_k(pairs, min(rules.candidates, pairs.size))
    own = chosen[index // classes]
    boxes = decode(anchors[own], deltas[own], clamp_below=rules.clamp_below)
    return _Candidates(
        clip(boxes, size),
        jnp.where(best > rules.min_score, best, -jnp.inf),
        index % classes,
    )
