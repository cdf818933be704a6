"""What a data set is: its splits, its classes, and how it may be opened."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bocb_jax.data.decode import RandomCrop
from bocb_jax.errors import UserError

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Example = dict[str, Any]  # "image" (H, W, 3) uint8 and "label"; optionally "index"
Batch = dict[str, Any]  # "image" (B, H, W, 3) uint8, "label" (B,) int32, "index" (B,) int32
ImageShape = tuple[int, int, int]
Key = tuple[int, ...]  # seeds what is random about one example


class Split:
    """The examples of one split, by index. Subclasses define `__len__` and `__getitem__`.

    Every other method has a default. Splits must be picklable for worker processes.

    Attributes:
      image_shape: (H, W, 3) of every image; None where sizes vary or are not known.
      in_memory: whether the images are held decoded, so that the devices may take them over.
      decodes: whether reading is slow enough to be spread over threads or worker processes.
    """

    image_shape: ImageShape | None = None
    in_memory: bool = False
    decodes: bool = True

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Example:
        raise NotImplementedError

    def draw(self, index: int, key: Key) -> Example:
        """Return the example at `index`; anything random about it depends on `key` alone."""
        del key
        return self[index]

    def gather(self, indices: np.ndarray, keys: Sequence[Key] = ()) -> Batch:
        """Return the examples at some indices as one batch.

        Where an unreadable image is skipped, "index" tells which one is returned instead.

        Args:
          indices: (B,) integers.
          keys: one for each example, for splits that are random; empty for none.

        Raises:
          UserError: the images differ in shape, or an example is not what it must be.
        """
        examples = self._drawn(indices, keys)
        for i, example in zip(indices, examples, strict=True):
            _check_example(int(i), example)
        shapes = {example["image"].shape for example in examples}
        if len(shapes) > 1:
            raise UserError(
                f"The images of a batch differ in shape: {sorted(shapes)}. Bring them to one size, "
                "or give their split a method `sized(image_size)` that does."
            )
        found = [example.get("index", i) for example, i in zip(examples, indices, strict=True)]
        return {
            "image": np.stack([example["image"] for example in examples]),
            "label": np.array([example["label"] for example in examples], np.int32),
            "index": np.array(found, np.int32),
        }

    def _drawn(self, indices: np.ndarray, keys: Sequence[Key]) -> list[Example]:
        keys = keys or [()] * len(indices)
        return [self.draw(int(i), key) for i, key in zip(indices, keys, strict=True)]

    def _stacked(self, indices: np.ndarray, keys: Sequence[Key]) -> Batch:
        """Return all that examples hold, stacked along a new first axis."""
        examples = self._drawn(indices, keys)
        return {name: np.stack([each[name] for each in examples]) for name in examples[0]}

    def load(self) -> Batch:
        """Return all examples as one batch.

        Raises:
          UserError: the images are random or too large to be held in memory.
        """
        return self.gather(np.arange(len(self), dtype=np.int32))

    def sized(self, image_size: int | None, crop_ratio: float = 1.0) -> "Split":
        """Return this split with all images of one shape; itself if they have one already.

        Args:
          image_size: side in pixels to which images of varying sizes are brought.
          crop_ratio: share of the shorter side that is kept, in the center.

        Raises:
          UserError: sizes vary and `image_size` is None.
        """
        del image_size, crop_ratio
        return self

    def cropped(self, image_size: int, crop: RandomCrop) -> "Split":
        """Return this split with a random crop of each image, resized to a square of `image_size`.

        Raises:
          UserError: this kind of split cannot crop.
        """
        raise UserError(
            "The images of this data set vary in size, and its splits cannot crop them. Derive the "
            "splits from bocb_jax.data.Split and define `cropped`, or bring the images to one size "
            "and give the data set that image_shape."
        )

    def for_workers(self) -> "Split":
        """Return the split that worker processes read."""
        return self

    def joined(self, other: "Split") -> "Split":
        """Return the examples of this split followed by those of another one."""
        return JoinedSplit(self, other)


def _check_example(index: int, example: Example) -> None:
    """Refuse what is no example: a pair, an image of another library, a label that is no integer.

    Raises:
      UserError: it has no image with a shape, or no label that is a whole number.
    """
    given = example if isinstance(example, Mapping) else {}
    if not hasattr(given.get("image"), "shape") or "label" not in given:
        held = ", ".join(map(repr, given)) or type(example).__name__
        raise UserError(
            f"Example {index} of the data set is {held}; give a dict of an 'image', an array (H, "
            "W, 3) of uint8, and a 'label', an integer."
        )
    label = np.asarray(given["label"])
    if label.ndim or label.dtype.kind not in "biuf" or label != np.floor(label):
        raise UserError(
            f"The label of example {index} of the data set is {given['label']!r}; give an integer."
        )


class JoinedSplit(Split):
    """Two splits of any kind, one after the other."""

    def __init__(self, first: Split, second: Split):
        self._parts = first, second
        self.image_shape = first.image_shape if first.image_shape == second.image_shape else None

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> Example:
        return self.draw(index, ())

    def draw(self, index: int, key: Key) -> Example:
        offset, part = 0, self._parts[0]
        if index >= len(part):
            offset, part = len(part), self._parts[1]
        example = part.draw(index - offset, key)
        _check_example(index, example)
        return example | {"index": example.get("index", index - offset) + offset}

    def sized(self, image_size: int | None, crop_ratio: float = 1.0) -> Split:
        return JoinedSplit(*(part.sized(image_size, crop_ratio) for part in self._parts))

    def cropped(self, image_size: int, crop: RandomCrop) -> Split:
        return JoinedSplit(*(part.cropped(image_size, crop) for part in self._parts))

    def for_workers(self) -> Split:
        return JoinedSplit(*(part.for_workers() for part in self._parts))


class Examples(Protocol):
    """What a user's own split has at least.

    Two further methods are used where they exist: `gather(indices)` reads a whole batch at once,
    and `sized(image_size)`, or `sized(image_size, crop_ratio)`, gives the same split with images of
    one shape. The crop ratio is the share of the shorter side that tests keep, in the center.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class UserSplit(Split):
    """A user's object with a length and items, as a `Split`."""

    def __init__(self, examples: Examples):
        self._examples = examples
        self._gather = getattr(examples, "gather", None)
        self._sized = getattr(examples, "sized", None)
        self.image_shape = getattr(examples, "image_shape", None)
        self.decodes = self._gather is None

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def gather(self, indices: np.ndarray, keys: Sequence[Key] = ()) -> Batch:
        return super().gather(indices, keys) if self._gather is None else self._gather(indices)

    def sized(self, image_size: int | None, crop_ratio: float = 1.0) -> Split:
        if self._sized is None or image_size is None:
            return self
        takes_size = _takes(self._sized, image_size)
        takes_both = _takes(self._sized, image_size, crop_ratio)
        if takes_both and (crop_ratio != 1.0 or not takes_size):
            return as_split(self._sized(image_size, crop_ratio))
        if crop_ratio != 1.0:
            logger.warning(
                "The method `sized` of %s takes no crop ratio: how much of an image is kept is "
                "left to it, and is not the recipe's %g of the shorter side.",
                type(self._examples).__name__,
                crop_ratio,
            )
        return as_split(self._sized(image_size))


def _takes(function: Callable, *arguments: object) -> bool:
    """Return whether a function can be called with these arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):  # it cannot, or has no signature
        return False
    return True


def as_split(examples: Split | Examples) -> Split:
    """Return a split as it is, and any other object with a length and items as a `UserSplit`."""
    return examples if isinstance(examples, Split) else UserSplit(examples)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labeled image data set.

    Attributes:
      name: the name that it was opened by.
      num_classes: labels are 0 ... num_classes - 1.
      splits: "train", "validation" and "test"; an object with a length and items will do.
      image_shape: (H, W, 3), or None where sizes vary.
      class_names: one name for each label, where known.
      mean: of each channel, with pixels scaled to 0 ... 1.
      std: of each channel, with pixels scaled to 0 ... 1.
      notes: sentences on what was found, and how classes are numbered.

    Raises:
      UserError: a field cannot be what it says; every field is checked, as people write their own.
    """

    name: str
    num_classes: int
    splits: Mapping[str, Split]
    image_shape: ImageShape | None
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        _check_description(self)
        splits = {key: as_split(split) for key, split in self.splits.items()}
        object.__setattr__(self, "splits", splits)

    def describe(self) -> str:
        """Return the numbers of classes and images in a sentence, followed by the notes."""
        counts = " ".join(f"{len(split):,} {key}," for key, split in self.splits.items())
        return f"{self.num_classes:,} classes; {counts[:-1]} images. {' '.join(self.notes)}".strip()

    def tuned_on_test(self) -> "Dataset":
        """Return the protocol of the BOCB paper (arXiv 2410.06373).

        It trains on all training images, validation included, and tunes on the test split.
        """
        train, validation, test = (self.splits[key] for key in ("train", "validation", "test"))
        splits = {"train": train.joined(validation), "validation": test, "test": test}
        return dataclasses.replace(self, splits=splits)


def _check_description(data: Dataset) -> None:
    """Check all fields of a data set but the examples.

    Raises:
      UserError: one of them cannot be right.
    """
    name, classes = data.name, data.num_classes
    if not isinstance(classes, (int, np.integer)) or isinstance(classes, bool):
        raise UserError(f"num_classes of '{name}' is {classes!r}; give an integer.")
    if classes < 2:
        raise UserError(
            f"'{name}' has {classes} class(es): there is nothing to tell apart, and a classifier "
            "would always be right. Give it images of at least two classes."
        )
    if data.class_names is not None and len(data.class_names) != classes:
        raise UserError(
            f"'{name}' has {classes} classes, but {len(data.class_names)} class names; "
            "give one for each."
        )
    missing = [key for key in ("train", "validation", "test") if key not in data.splits]
    if data.splits and missing:
        raise UserError(f"'{name}' has no split '{missing[0]}'; give train, validation and test.")
    shape = data.image_shape
    if shape is not None and not (len(shape) == 3 and shape[2] == 3 and min(shape) > 0):
        raise UserError(
            f"image_shape of '{name}' is {shape}; give (height, width, 3), or None where "
            "sizes vary."
        )
    for field, least in (("mean", 0.0), ("std", 1e-6)):
        values = np.asarray(getattr(data, field), object)
        if values.shape != (3,) or not all(
            isinstance(x, (int, float, np.number)) and least <= x <= 1 for x in values
        ):
            raise UserError(
                f"{field} of '{name}' is {getattr(data, field)}; give a number from {least:g} to 1 "
                "for each of the three channels, of pixels scaled to 0 ... 1."
            )


@dataclasses.dataclass(frozen=True)
class OpenOptions:
    """How to open a data set; the only argument of a registered opener.

    Attributes:
      split_seed: decides which examples are held out where there is no official validation split.
      data_dir: directory of the data sets on this machine; None for each reader's own default.
      on_corrupt: "fail" stops at an unreadable image, "skip" takes the next readable one.
      download: whether a data set that is missing may be downloaded.
    """

    split_seed: int = 0
    data_dir: str | None = None
    on_corrupt: str = "fail"
    download: bool = True

    def __post_init__(self):
        if self.on_corrupt not in ("fail", "skip"):
            raise UserError(f"on_corrupt is 'fail' or 'skip', not '{self.on_corrupt}'.")
