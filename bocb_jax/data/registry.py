"""Data sets by name: what a data set is, the registry, in-memory arrays, and the digits.

A split is anything with `len(split)` and `split[i] -> {"image": uint8 (H, W, 3), "label": int32}`.
Two optional members make it faster or more general: `gather(indices)` reads a whole batch at once,
and `sized(image_size)` gives the same split with all images of one shape (needed where
`image_shape` is None, that is where sizes vary).
"""

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bocb_jax.errors import UserError
from bocb_jax.registry import Registry

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Example = dict[str, Any]


class Split(Protocol):
    """The examples of one split, by index."""

    image_shape: tuple[int, int, int] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labelled image data set; numbers and splits, nothing of JAX.

    Attributes:
      name: the name it was opened by.
      num_classes: labels are 0 ... num_classes - 1.
      splits: "train", "validation" and "test".
      image_shape: (H, W, 3), or None where sizes vary.
      class_names: a name per label, where known.
      mean: per channel, of pixels scaled to 0 ... 1.
      std: per channel, of pixels scaled to 0 ... 1.
    """

    name: str
    num_classes: int
    splits: Mapping[str, Split]
    image_shape: tuple[int, int, int] | None
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def tuned_on_test(self) -> "Dataset":
        """The way of the BOCB paper: trained on all training images, tuned on the test split.

        Raises:
          UserError: the splits of this data set cannot be joined.
        """
        train, validation = self.splits["train"], self.splits["validation"]
        if not hasattr(train, "joined"):
            raise UserError(f"The splits of '{self.name}' cannot be joined for --protocol paper.")
        test = self.splits["test"]
        splits = {"train": train.joined(validation), "validation": test, "test": test}
        return dataclasses.replace(self, splits=splits)


@dataclasses.dataclass(frozen=True)
class OpenOptions:
    """What a caller may ask of any data set; a registered opener takes it as its only argument.

    Attributes:
      split_seed: decides which examples are held out where there is no official validation split.
      data_dir: where data sets lie on this machine; None for each reader's own default.
      on_corrupt: "fail" stops at an unreadable image, "skip" takes the next readable one.
      download: whether a data set that is not there may be fetched.
    """

    split_seed: int = 0
    data_dir: str | None = None
    on_corrupt: str = "fail"
    download: bool = True

    def __post_init__(self):
        if self.on_corrupt not in ("fail", "skip"):
            raise UserError(f"on_corrupt is 'fail' or 'skip', not '{self.on_corrupt}'.")


Opener = Callable[[OpenOptions], Dataset]
DATASETS: Registry[Opener] = Registry(
    "dataset", package="bocb_jax.data", entry_points="bocb_jax.datasets"
)


def register_dataset(name: str) -> Callable[[Opener], Opener]:
    """Decorator that adds a data set of one's own.

    >>> @register_dataset("stripes")
    ... def stripes(options):
    ...     images = np.tile(np.uint8([0, 255]), (100, 8, 4))
    ...     labels = np.arange(100) % 2
    ...     return from_arrays("stripes", images, labels, split_seed=options.split_seed)
    >>> open_dataset("stripes").num_classes
    2
    """
    return lambda opener: DATASETS.register(name, opener)


def open_dataset(
    name: str,
    *,
    split_seed: int = 0,
    data_dir: str | None = None,
    on_corrupt: str = "fail",
    download: bool = True,
) -> Dataset:
    """Opens a data set by name.

    Args:
      name: a registered name ("digits"), "folder:PATH", or "tfds:NAME".
      split_seed: see `OpenOptions`, as for the other arguments.
      data_dir: where data sets lie on this machine.
      on_corrupt: "fail" or "skip".
      download: whether a data set that is not there may be fetched.

    Raises:
      UnknownName: no such data set; the message lists near matches.
      UserError: it is there but cannot be used; the message says why.
    """
    options = OpenOptions(split_seed, data_dir, on_corrupt, download)
    scheme, colon, rest = name.partition(":")
    if colon and scheme == "folder":
        from bocb_jax.data.image_folder import open_folder

        return open_folder(rest, options)
    if colon and scheme == "tfds":
        from bocb_jax.data.tfds import open_tfds

        return open_tfds(rest, options)
    return DATASETS.get(name)(options)


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """A split held in memory (or in a memory map)."""

    images: np.ndarray  # (N, H, W, 3) uint8
    labels: np.ndarray  # (N,) int32

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return {"image": np.ascontiguousarray(self.images[index]), "label": self.labels[index]}

    def gather(self, indices: np.ndarray) -> Example:
        """The examples at `indices` as one batch."""
        images = np.ascontiguousarray(self.images[indices])
        return {"image": images, "label": self.labels[indices], "index": indices}

    def joined(self, other: "ArraySplit") -> "ArraySplit":
        """The examples of both."""
        pairs = (self.images, other.images), (self.labels, other.labels)
        return ArraySplit(*(np.concatenate(pair) for pair in pairs))


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
    """A data set from arrays.

    Args:
      name: what to call it in records.
      images: (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8.
      labels: (N,) integers from 0.
      validation: images and labels of the validation split; held out of `images` when None.
      test: images and labels of the test split; held out of `images` when None.
      held_out: fraction of `images` for each split that is held out, the same in every class.
      split_seed: decides which examples are held out.
      **description: further fields of `Dataset` (class_names, mean, std).

    Raises:
      UserError: arrays of other shapes, types or lengths.
    """
    pool = _array_split(name, "training", images, labels)
    given = {"validation": validation, "test": test}
    splits = {
        key: _array_split(name, key, *arrays) for key, arrays in given.items() if arrays is not None
    }
    missing = [key for key in given if key not in splits]
    parts = split_indices(pool.labels, [held_out] * len(missing), split_seed)
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
    splits = {key: splits[key] for key in ("train", "validation", "test")}
    return Dataset(name, num_classes, splits, shapes.pop(), **description)


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
    # Grey images become three equal channels; the view costs no memory.
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    return ArraySplit(images, labels.astype(np.int32))


def permutation(size: int, *key: int) -> np.ndarray:
    """A permutation of 0 ... size - 1 that is a pure function of two 64-bit integers.

    The raw output of a counter-based generator is the same in every version of NumPy;
    `Generator.permutation` promises no such thing.
    """
    random = np.random.Philox(key=np.array(key, np.uint64)).random_raw(size)
    return np.argsort(random, kind="stable").astype(np.int32)


def split_indices(labels: np.ndarray, parts: Sequence[float], seed: int) -> list[np.ndarray]:
    """Splits examples at random so that every part has the same mix of classes.

    Args:
      labels: (N,) integers from 0.
      parts: fraction of the examples that goes to each held-out part.
      seed: decides which examples go where.

    Returns:
      Sorted indices: first of what remains, then of each part.

    Raises:
      UserError: fewer examples than parts.
    """
    if len(labels) <= len(parts):
        raise UserError(
            f"{len(labels)} training images are too few to hold {len(parts)} parts out."
        )
    # An example's place among its class, in random order, is its quantile. Dealt out by quantile,
    # all classes go to the parts in step.
    shuffled = permutation(len(labels), seed, 0)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    of_class = labels[by_class]
    quantile = np.empty(len(labels))
    quantile[by_class] = (np.arange(len(labels)) - first[of_class] + 0.5) / counts[of_class]
    dealt = shuffled[np.argsort(quantile[shuffled], kind="stable")]
    sizes = [max(1, round(part * len(labels))) for part in parts]
    *held, rest = np.split(dealt, np.cumsum(sizes))
    return [np.sort(part) for part in (rest, *held)]


def held_out_fraction(examples: int) -> float:
    """How much of a training split to hold out: a tenth, but no more than 10,000 images."""
    return min(0.1, 10_000 / examples)


@register_dataset("digits")
def open_digits(options: OpenOptions) -> Dataset:
    """1,797 handwritten digits, 8x8, that come with scikit-learn (E. Alpaydin, C. Kaynak, 1998)."""
    # Read from scikit-learn's own file: importing it takes as long as compiling a small net.
    folder = importlib.util.find_spec("sklearn").submodule_search_locations[0]
    table = np.loadtxt(os.path.join(folder, "datasets", "data", "digits.csv.gz"), delimiter=",")
    # 64 levels of grey, 0 ... 16, and the digit.
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return from_arrays(
        "digits",
        images,
        table[:, -1].astype(np.int32),
        split_seed=options.split_seed,
        class_names=tuple("0123456789"),
        mean=(0.305, 0.305, 0.305),
        std=(0.376, 0.376, 0.376),
    )
