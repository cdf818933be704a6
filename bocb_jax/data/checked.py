"""Splits that people wrote themselves, with every batch checked."""

from collections.abc import Mapping, Sequence

import numpy as np

from bocb_jax.data.arrays import ArraySplit
from bocb_jax.data.dataset import Batch, Example, Key, Split
from bocb_jax.data.splits import CachedSplit, EncodedSplit
from bocb_jax.errors import UserError


def checked(split: Split, num_classes: int) -> Split:
    """Return a split whose batches are checked; the package's own kinds as they are."""
    own = isinstance(split, (ArraySplit, EncodedSplit, CachedSplit))
    return split if own else CheckedSplit(split, num_classes)


class CheckedSplit(Split):
    """Another split, each batch of which is checked.

    Images of other types than uint8 would be taken for 0 ... 255 and be almost black, and a label
    that is no class would give a loss that is not a number.
    """

    def __init__(self, split: Split, num_classes: int):
        self._split, self._num_classes = split, num_classes
        self.image_shape, self.in_memory = split.image_shape, split.in_memory
        self.decodes = split.decodes

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Example:
        return self._split[index]

    def gather(self, indices: np.ndarray, keys: Sequence[Key] = ()) -> Batch:
        return self._check(self._split.gather(indices, keys), indices)

    def load(self) -> Batch:
        return self._check(self._split.load(), np.arange(len(self), dtype=np.int32))

    def for_workers(self) -> Split:
        return CheckedSplit(self._split.for_workers(), self._num_classes)

    def _check(self, batch: Batch, indices: np.ndarray) -> Batch:
        given = batch if isinstance(batch, Mapping) else {}
        if "image" not in given or "label" not in given:
            held = ", ".join(map(repr, given)) or type(batch).__name__
            raise UserError(
                f"A batch of the data set is {held}; give a dict of an 'image', an array (B, H, W, "
                "3) of uint8, and a 'label', (B,) integers."
            )
        batch = {"index": indices, **batch}
        images, labels = np.asanyarray(batch["image"]), np.asanyarray(batch["label"])
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(
                f"A batch of the data set has images of {images.dtype} and shape {images.shape}; "
                "give uint8 of shape (B, H, W, 3), on a scale of 0 ... 255."
            )
        if len(images) != len(indices):
            raise UserError(
                f"A batch of the data set has {len(images)} images, where {len(indices)} were "
                "asked for; give one for each index."
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"A batch of the data set has labels of {labels.dtype} and shape {labels.shape}; "
                f"give one integer for each of its {len(images)} images."
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < self._num_classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise UserError(
                f"The data set has the label {wrong}, which is none of its {self._num_classes} "
                f"classes; count from 0 to {self._num_classes - 1}."
            )
        return batch
