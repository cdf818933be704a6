"""Object keypoint similarity between predicted persons: scores, and removal of duplicates.

All functions are for the persons of one image, padded to a fixed number; `jax.vmap` maps them over
images.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def oks(
    joints: jax.Array,
    areas: jax.Array,
    others: jax.Array,
    other_areas: jax.Array,
    sigmas: Sequence[float],
) -> jax.Array:
    """Return the object keypoint similarity of each person with each other one, over all joints.

    The area between two predictions is the mean of theirs.

    Args:
      joints: (N, K, 2) in pixels.
      areas: (N,) in pixels squared.
      others: (M, K, 2).
      other_areas: (M,).
      sigmas: of the K joints, `Skeleton.sigmas`.

    Returns:
      (N, M) in 0 ... 1, float32.
    """
    joints, others = joints.astype(jnp.float32), others.astype(jnp.float32)
    squared = jnp.square(joints[:, None] - others[None]).sum(-1)  # (N, M, K)
    variances = jnp.square(2 * jnp.asarray(sigmas, jnp.float32))[None, None]
    area = ((areas[:, None] + other_areas[None]) / 2)[..., None].astype(jnp.float32)
    # The smallest float32 in place of float64's last bit: persons of no area.
    return jnp.exp(-squared / variances / (area + jnp.finfo(jnp.float32).tiny) / 2).mean(-1)


def oks_nms(
    joints: jax.Array,
    scores: jax.Array,
    areas: jax.Array,
    valid: jax.Array,
    sigmas: Sequence[float],
    threshold: float = 0.9,
) -> jax.Array:
    """Return which persons to keep: each that is no duplicate of a kept one of higher score.

    Args:
      joints: (N, K, 2) in pixels.
      scores: (N,).
      areas: (N,) in pixels squared.
      valid: (N,), False where the arrays are filled up.
      sigmas: of the K joints.
      threshold: similarity above which one of two persons is dropped.

    Returns:
      (N,) booleans.
    """
    order = jnp.argsort(-jnp.where(valid, scores, -jnp.inf))
    similar = oks(joints, areas, joints, areas, sigmas)[order][:, order] > threshold

    def visit(place: jax.Array, kept: jax.Array) -> jax.Array:
        # Only persons before this one have been kept so far.
        return kept.at[place].set(valid[order[place]] & ~jnp.any(kept & similar[place]))

    kept = lax.fori_loop(0, len(scores), visit, jnp.zeros(len(scores), bool))
    return jnp.zeros(len(scores), bool).at[order].set(kept)


def soft_oks_nms(
    joints: jax.Array,
    scores: jax.Array,
    areas: jax.Array,
    valid: jax.Array,
    sigmas: Sequence[float],
    threshold: float = 0.9,
    most: int = 20,
) -> jax.Array:
    """Return persons in the order in which they are taken, lowering scores of those alike.

    Taking a person multiplies the score of each remaining one by exp(-oks^2 / threshold)
    (Bodla et al., 2017, arXiv 1704.04503).

    Args:
      joints, scores, areas, valid, sigmas: as in `oks_nms`.
      threshold: width of the decay.
      most: number of persons taken at most.

    Returns:
      (min(most, N),) numbers of persons, -1 where there are no more.
    """
    decay = jnp.exp(-jnp.square(oks(joints, areas, joints, areas, sigmas)) / threshold)
    steps = min(most, len(scores))

    def take(
        place: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        taken, left, current = state
        best = jnp.argmax(jnp.where(left, current, -jnp.inf))
        taken = taken.at[place].set(jnp.where(left.any(), best, -1))
        return taken, left.at[best].set(False), current * decay[best]

    first = jnp.full(steps, -1), valid, scores.astype(jnp.float32)
    return lax.fori_loop(0, steps, take, first)[0]


def person_scores(
    joint_scores: jax.Array, box_scores: jax.Array, threshold: float = 0.2
) -> jax.Array:
    """Return the score of each person: its box's, times the mean of its joints' above a threshold.

    Args:
      joint_scores: (..., K), the largest values of the heat maps.
      box_scores: (...,) of the detector, or ones for annotated boxes.
      threshold: joints of at most this score do not count.

    Returns:
      (...,); 0 where no joint counts.
    """
    counted = joint_scores > threshold
    number = counted.sum(-1)
    mean = jnp.where(counted, joint_scores, 0).sum(-1) / jnp.maximum(number, 1)
    return jnp.where(number > 0, mean, 0) * box_scores
