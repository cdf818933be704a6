"""Which examples are held out: reproducible permutations and stratified splits."""

from collections.abc import Sequence

import numpy as np

from bocb_jax.errors import UserError


def permutation(size: int, *key: int) -> np.ndarray:
    """Return a permutation of 0 ... size - 1 as a pure function of two 64-bit integers.

    The raw output of a counter-based generator is the same in every version of NumPy;
    `Generator.permutation` gives no such guarantee.
    """
    random = np.random.Philox(key=np.array(key, np.uint64)).random_raw(size)
    return np.argsort(random, kind="stable").astype(np.int32)


def stratified_split(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Divide examples at random into parts that all have the same mix of classes.

    Args:
      labels: (N,) integers from 0.
      fractions: share of the examples in each part that is held out.
      seed: decides which examples are held out.

    Returns:
      Sorted indices: those that remain, followed by each held-out part.

    Raises:
      UserError: no more examples than parts.
    """
    if len(labels) <= len(fractions):
        raise UserError(
            f"{len(labels)} training images are too few to hold out {len(fractions)} parts; add "
            "images, or give validation and test images of their own."
        )
    # The rank of an example within its shuffled class is its quantile; dealing out by quantile
    # takes the same share of every class.
    shuffled = permutation(len(labels), seed, 0)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    of_class = labels[by_class]
    quantile = np.empty(len(labels))
    quantile[by_class] = (np.arange(len(labels)) - first[of_class] + 0.5) / counts[of_class]
    dealt = shuffled[np.argsort(quantile[shuffled], kind="stable")]
    sizes = [max(1, round(fraction * len(labels))) for fraction in fractions]
    *held_out, rest = np.split(dealt, np.cumsum(sizes))
    return [np.sort(part) for part in (rest, *held_out)]


def held_out_fraction(examples: int) -> float:
    """Return the share of a training split to hold out: a tenth, but at most 10,000 images."""
    return min(0.1, 10_000 / examples)
