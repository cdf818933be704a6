"""Data sets held in memory as arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bocb_jax.data.dataset import Batch, Dataset, Example, Key, Split
from bocb_jax.data.holdout import stratified_split
from bocb_jax.errors import UserError


class ArraySplit(Split):
    """A split held in memory, or in a memory map.

    Args:
      images: (N, H, W, 3) uint8.
      labels: (N,) int32.
    """

    in_memory = True
    decodes = False

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels
        _, height, width, channels = images.shape
        self.image_shape = height, width, channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return {"image": np.ascontiguousarray(self.images[index]), "label": self.labels[index]}

    def gather(self, indices: np.ndarray, keys: Sequence[Key] = ()) -> Batch:
        del keys  # nothing is random
        images = np.ascontiguousarray(self.images[indices])
        return {"image": images, "label": self.labels[indices], "index": indices}

    def joined(self, other: "ArraySplit") -> "ArraySplit":
        return ArraySplit(
            np.concatenate([self.images, other.images]),
            np.concatenate([self.labels, other.labels]),
        )


def from_arrays(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    held_out: float = 0.15,
    split_seed: int = 0,
    **description: Any,
) -> Dataset:
    """Build a data set from arrays.

    Args:
      name: the name of the data set in records.
      images: (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8.
      labels: (N,) integers from 0.
      validation: images and labels of the validation split; held out of `images` when None.
      test: images and labels of the test split; held out of `images` when None.
      held_out: fraction of `images` in each split that is held out, the same for every class.
      split_seed: decides which examples are held out.
      **description: further fields of `Dataset` (class_names, mean, std).

    Raises:
      UserError: the arrays have wrong shapes, types or lengths.
    """
    pool = _array_split(name, "training", images, labels)
    given = {"validation": validation, "test": test}
    splits = {
        key: _array_split(name, key, *arrays) for key, arrays in given.items() if arrays is not None
    }
    missing = [key for key in given if key not in splits]
    parts = stratified_split(pool.labels, [held_out] * len(missing), split_seed)
    for key, part in zip(["train", *missing], parts, strict=True):
        splits[key] = ArraySplit(pool.images[part], pool.labels[part])
    shapes = {split.image_shape for split in splits.values()}
    if len(shapes) > 1:
        raise UserError(f"The splits of '{name}' hold images of different shapes: {shapes}.")
    num_classes = 1 + max(int(split.labels.max(initial=-1)) for split in splits.values())
    class_names = description.get("class_names")
    if class_names is not None:
        if len(class_names) < num_classes:
            raise UserError(
                f"'{name}' has labels up to {num_classes - 1}, but {len(class_names)} class names."
            )
        num_classes = len(class_names)
    in_order = {key: splits[key] for key in ("train", "validation", "test")}
    return Dataset(name, num_classes, in_order, shapes.pop(), **description)


def _array_split(name: str, key: str, images: np.ndarray, labels: np.ndarray) -> ArraySplit:
    images, labels = np.asanyarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"The {key} images of '{name}' are {images.dtype} of shape {images.shape}; "
            "give uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3)."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"The {key} labels of '{name}' are {labels.dtype} of shape {labels.shape}; "
            f"give one integer for each of the {len(images)} images."
        )
    if len(labels) == 0:
        raise UserError(f"'{name}' has no {key} images.")
    if labels.min() < 0:
        raise UserError(f"The {key} labels of '{name}' start at {labels.min()}; count from 0.")
    # Gray images become three equal channels; the broadcast view costs no memory.
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    return ArraySplit(images, labels.astype(np.int32))
