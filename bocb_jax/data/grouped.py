"""Batches of images of one shape each, where a data set has images of several.

As every plan, these are pure functions of (seed, step): a saved position is the number of the next
step, and holds for any number of processes.
"""

import functools
import zlib
from collections.abc import Sequence

import numpy as np

from bocb_jax.data.holdout import permutation
from bocb_jax.data.pipeline import Plan
from bocb_jax.errors import UserError

# Keys of the permutation of batches, apart from those of images.
_BATCHES = 2**63


class GroupedTrainPlan(Plan):
    """Endless epochs of shuffled batches, none of which mixes groups.

    As in MMDetection, an epoch shows every image, and the last batch of each group is filled up
    with further images of the group.

    Args:
      groups: (N,) integers from 0, of each example.
      batch_size: of the global batch.
      seed: decides the order of every epoch.

    Raises:
      UserError: there is no example.
    """

    def __init__(self, groups: Sequence[int] | np.ndarray, batch_size: int, seed: int):
        self._groups = np.asarray(groups, np.int32)
        if not len(self._groups):
            raise UserError("There is no image to train on.")
        self.identity = {
            "examples": len(self._groups),
            "batch_size": batch_size,
            "seed": seed,
            "groups": _digest(self._groups),
        }
        self.steps = int((-(-np.bincount(self._groups) // batch_size)).sum())
        self._last: tuple[int, np.ndarray] | None = None  # the order of an epoch, and which

    def __len__(self) -> int:
        return 2**62

    def epoch(self, number: int) -> tuple[np.ndarray, None]:
        if self._last is None or self._last[0] != number:
            self._last = number, self._order(number)
        return self._last[1], None

    def _order(self, epoch: int) -> np.ndarray:
        size, seed = self.identity["batch_size"], self.identity["seed"]
        shuffled = permutation(len(self._groups), seed, epoch + 1)
        batches = []
        for group in np.unique(self._groups):
            members = shuffled[self._groups[shuffled] == group]
            # Filled up from its beginning, again and again if the group is smaller than a batch.
            batches.append(np.resize(members, (-(-len(members) // size), size)))
        order = permutation(self.steps, seed, _BATCHES + epoch + 1)
        return np.concatenate(batches)[order].ravel()


class GroupedEvaluationPlan(Plan):
    """Every example once, group by group; the last batch of each is filled up with weight 0.

    Args:
      groups: (N,) integers from 0, of each example.
      batch_size: of the global batch.
    """

    def __init__(self, groups: Sequence[int] | np.ndarray, batch_size: int):
        self._groups = np.asarray(groups, np.int32)
        self.identity = {
            "examples": len(self._groups),
            "batch_size": batch_size,
            "groups": _digest(self._groups),
        }
        self.steps = int((-(-np.bincount(self._groups) // batch_size)).sum())

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        del number  # every pass is the same
        return self._pass

    @functools.cached_property
    def _pass(self) -> tuple[np.ndarray, np.ndarray]:
        size = self.identity["batch_size"]
        order, weights = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
        for group in np.unique(self._groups):
            members = np.flatnonzero(self._groups == group).astype(np.int32)
            fill = -len(members) % size
            order += [members, np.repeat(members[:1], fill)]
            weights += [np.ones(len(members), np.float32), np.zeros(fill, np.float32)]
        return np.concatenate(order), np.concatenate(weights)


def _digest(groups: np.ndarray) -> int:
    """Return a number by which a saved position is told from that of other groups."""
    return zlib.crc32(np.ascontiguousarray(groups, "<i4").tobytes())
