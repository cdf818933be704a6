"""From images to the persons of a data set: the flip test, scores, and removal of duplicates."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bocb_jax.pose.codec import mirror_back
from bocb_jax.pose.oks import oks_nms, person_scores, soft_oks_nms
from bocb_jax.pose.skeleton import Skeleton

_IMAGES_AT_A_TIME = 32


def flip_test(
    forward: Callable[[jax.Array], jax.Array], images: jax.Array, skeleton: Skeleton
) -> jax.Array:
    """Return the mean of the heat maps of images and of their mirror images.

    Args:
      forward: from images (B, H, W, 3) to heat maps (B, h, w, K).
      images: the images.
      skeleton: of the joints.
    """
    mirrored = forward(images[:, :, ::-1])
    return (forward(images) + mirror_back(mirrored, skeleton.mirrored)) / 2


def score_persons(
    joints: np.ndarray,
    joint_scores: np.ndarray,
    box_scores: np.ndarray,
    areas: np.ndarray,
    image: np.ndarray,
    sigmas: Sequence[float],
    *,
    joint_threshold: float = 0.2,
    threshold: float = 0.9,
    soft: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of each person, and which of each image's persons are no duplicates.

    Args:
      joints: (P, K, 2) in pixels of the images.
      joint_scores: (P, K), the largest values of the heat maps.
      box_scores: (P,).
      areas: (P,), of the padded boxes in pixels squared.
      image: (P,) integers, which image each person is in.
      sigmas: of the K joints.
      joint_threshold: see `person_scores`.
      threshold: see `oks_nms`.
      soft: keep the persons that `soft_oks_nms` takes.

    Returns:
      (P,) float32 and (P,) booleans.
    """
    scored = person_scores(jnp.asarray(joint_scores), jnp.asarray(box_scores), joint_threshold)
    scores = np.asarray(scored, np.float32)
    kept = np.zeros(len(scores), bool)
    if not len(scores):
        return scores, kept
    _, image, counts = np.unique(image, return_inverse=True, return_counts=True)
    # A power of two: few sizes are compiled.
    capacity = 1 << int(counts.max() - 1).bit_length()
    order = np.argsort(image, kind="stable")
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(counts), capacity), -1)
    table[image[order], place] = order
    keep = _nms(tuple(sigmas), threshold, soft)
    valid = table >= 0
    found = keep((joints[table], scores[table], areas[table], valid))
    kept[table[valid]] = np.asarray(found)[valid]
    return scores, kept


@functools.cache
def _nms(
    sigmas: tuple[float, ...], threshold: float, soft: bool
) -> Callable[[tuple[np.ndarray, ...]], jax.Array]:
    """Return which persons remain, compiled for arrays with a first axis for the images."""

    def of_image(arrays: tuple[jax.Array, ...]) -> jax.Array:
        joints, scores, areas, valid = arrays
        if not soft:
            return oks_nms(joints, scores, areas, valid, sigmas, threshold)
        taken = soft_oks_nms(joints, scores, areas, valid, sigmas, threshold)
        return (jnp.arange(len(scores))[:, None] == taken[None]).any(1)

    return jax.jit(
        lambda arrays: jax.lax.map(
            of_image, jax.tree.map(jnp.asarray, arrays), batch_size=_IMAGES_AT_A_TIME
        )
    )
