"""Data sets held in memory as arrays."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from bocb_jax.data.dataset import Batch, Dataset, Example, Key, Split
from bocb_jax.data.holdout import stratified_split
from bocb_jax.errors import UserError

logger = logging.getLogger(__name__)

# So many times as many classes as labels that occur: these labels are not numbers of classes.
MAX_CLASSES_PER_LABEL = 100


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

    def joined(self, other: Split) -> Split:
        if not isinstance(other, ArraySplit) or self.image_shape != other.image_shape:
            return super().joined(other)
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
      UserError: the arrays have wrong shapes, types or lengths, or leave nothing to train on.
    """
    if not 0 < held_out < 1:
        raise UserError(f"held_out of '{name}' is {held_out}; give a fraction between 0 and 1.")
    if split_seed < 0:
        raise UserError(f"split_seed of '{name}' is {split_seed}; give an integer of at least 0.")
    pool = _array_split(name, "training", images, labels)
    given = {"validation": validation, "test": test}
    splits = {
        key: _array_split(name, key, *arrays) for key, arrays in given.items() if arrays is not None
    }
    missing = [key for key in given if key not in splits]
    parts = stratified_split(pool.labels, [held_out] * len(missing), split_seed)
    if not len(parts[0]):
        raise UserError(
            f"Holding {held_out:g} of the {len(pool)} images of '{name}' out for each of "
            f"{' and '.join(missing)} leaves none to train on; make held_out smaller."
        )
    for key, part in zip(["train", *missing], parts, strict=True):
        splits[key] = ArraySplit(pool.images[part], pool.labels[part])
    shapes = {split.image_shape for split in splits.values()}
    if len(shapes) > 1:
        raise UserError(f"The splits of '{name}' hold images of different shapes: {shapes}.")
    num_classes = _count_classes(name, list(splits.values()), description.get("class_names"))
    in_order = {key: splits[key] for key in ("train", "validation", "test")}
    return Dataset(name, num_classes, in_order, shapes.pop(), **description)


def _count_classes(name: str, splits: list[ArraySplit], class_names: Sequence[str] | None) -> int:
    """Return the number of class names, or else one more than the largest label."""
    occurring = np.unique(np.concatenate([np.unique(split.labels) for split in splits]))
    num_classes = 1 + int(occurring[-1])
    if class_names is not None:
        if len(class_names) < num_classes:
            raise UserError(
                f"'{name}' has labels up to {num_classes - 1}, but {len(class_names)} class names."
            )
        return len(class_names)
    if num_classes > MAX_CLASSES_PER_LABEL * len(occurring):
        raise UserError(
            f"The labels of '{name}' go up to {num_classes - 1:,}, but only {len(occurring)} "
            "occur; number the classes from 0 on, without gaps, or give class_names."
        )
    if len(occurring) < num_classes:
        gap = int(np.flatnonzero(np.diff(occurring, prepend=-1) > 1)[0])
        logger.warning(
            "The labels of '%s' have gaps: %d of %d occur, and %d does not. All of them are "
            "counted as classes.",
            name,
            len(occurring),
            num_classes,
            int(occurring[gap - 1]) + 1 if gap else 0,
        )
    return num_classes


def _array_split(name: str, key: str, images: np.ndarray, labels: np.ndarray) -> ArraySplit:
    images = _as_array(name, f"{key} images", images)
    labels = _as_array(name, f"{key} labels", labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"The {key} images of '{name}' are {images.dtype} of shape {images.shape}; "
            "give uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3)." + _image_hint(images)
        )
    if 0 in images.shape[1:]:
        raise UserError(f"The {key} images of '{name}' have no pixels: shape {images.shape}.")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"The {key} labels of '{name}' are {labels.dtype} of shape {labels.shape}; "
            f"give one integer for each of the {len(images)} images." + _label_hint(labels, images)
        )
    if len(labels) == 0:
        raise UserError(f"'{name}' has no {key} images.")
    if labels.min() < 0:
        raise UserError(f"The {key} labels of '{name}' start at {labels.min()}; count from 0.")
    if labels.max() >= 2**31 - 1:
        raise UserError(f"The {key} labels of '{name}' go up to {labels.max()}; count from 0.")
    # Gray images become three equal channels; the broadcast view costs no memory.
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    return ArraySplit(images, labels.astype(np.int32))


def _as_array(name: str, what: str, values: Any) -> np.ndarray:
    """Return values as an array, a memory map as it is."""
    if np.ma.is_masked(values):
        raise UserError(f"The {what} of '{name}' are masked in part; leave those out.")
    try:
        return values if isinstance(values, np.memmap) else np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # of unequal shapes, on a device ...
        reason = " ".join(str(error).split())
        raise UserError(
            f"The {what} of '{name}' are no array ({reason}); give a NumPy array."
        ) from error


def _image_hint(images: np.ndarray) -> str:
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3):
        return " Channels come last: images.transpose(0, 2, 3, 1)."
    if images.dtype == bool:
        return " For black and white: images.astype(np.uint8) * 255."
    if np.issubdtype(images.dtype, np.floating):
        return " For floats of 0 ... 1: (images * 255).round().astype(np.uint8)."
    if images.dtype == object:
        return " Bring the images to one size, and stack them."
    return ""


def _label_hint(labels: np.ndarray, images: np.ndarray) -> str:
    if labels.ndim == 2 and labels.shape[0] == len(images):
        if labels.shape[1] == 1:
            return " Drop the second axis: labels[:, 0]."
        return " For one-hot labels: labels.argmax(1)."
    if np.issubdtype(labels.dtype, np.floating) and labels.shape == images.shape[:1]:
        return " For whole numbers: labels.astype(int)."
    return ""
