"""Splits whose images are decoded when read: as they are, cropped at random, or cached."""

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bocb_jax.data.dataset import Batch, Example, ImageShape, Key, Split
from bocb_jax.data.decode import RandomCrop, decode, decode_crop
from bocb_jax.data.exif import orientation
from bocb_jax.data.records import JoinedRecords, Records
from bocb_jax.errors import UserError

logger = logging.getLogger(__name__)

# Splits that take up to this many bytes when decoded stay in memory once they have been read.
MAX_CACHE_BYTES = 512 * 2**20
# That many unreadable images in a row mean that the whole data set is broken.
MAX_SKIPPED = 1000

# Threads that decode images count those that carry an orientation.
_counting = threading.Lock()


class CorruptImage(Exception):
    """An image that cannot be decoded; the message names it."""


class EncodedSplit(Split):
    """A split whose images are decoded when they are read.

    Args:
      records: the encoded images.
      image_shape: (H, W, 3) of all images, or None where sizes vary.
      on_corrupt: "fail" raises at an unreadable image; "skip" returns the next readable one
        instead, under its own index.
      size: side in pixels of the square to which every image is brought; None for none.
      crop_ratio: share of the shorter side that is kept then.
    """

    def __init__(
        self,
        records: Records,
        image_shape: ImageShape | None = None,
        on_corrupt: str = "fail",
        size: int | None = None,
        crop_ratio: float = 1.0,
    ):
        self.image_shape = image_shape
        self._records = records
        self._on_corrupt = on_corrupt
        self._size, self._crop_ratio = size, crop_ratio
        self._sized: dict[tuple[int | None, float], Split] = {}
        self._skipped: set[int] = set()
        self._turned: np.ndarray | None = None  # (N,) whether an image carries an orientation

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self.draw(index, ())

    def draw(self, index: int, key: Key) -> Example:
        """Return the example at `index`, or the next readable one where that is to be skipped.

        Raises:
          UserError: the image is unreadable, or so are too many in a row.
        """
        for found in range(index, index + min(len(self), MAX_SKIPPED)):
            found %= len(self)
            try:
                image, label = self._read(found, key)
            except CorruptImage as error:
                if self._on_corrupt == "fail":
                    raise UserError(
                        f"{error} Remove or replace it, or pass --on-corrupt skip."
                    ) from error
                self._note_skipped(found, error)
            else:
                return {"image": image, "label": np.int32(label), "index": np.int32(found)}
        raise UserError(
            f"None of the {min(len(self), MAX_SKIPPED):,} images from {self._records.name(index)} "
            "on can be read."
        )

    def load(self) -> Batch:
        raise UserError(
            "Images that are cropped at random when they are read, or that are too many to be kept "
            "decoded in memory, cannot be placed on the devices; leave out --data.on-device yes."
        )

    def sized(self, image_size: int | None, crop_ratio: float = 1.0) -> Split:
        """Return this split with images of one shape, cached if they are small enough.

        Images that have one shape already keep it, whatever `image_size`: the device resizes them
        at less cost.

        Raises:
          UserError: sizes vary and `image_size` is None.
        """
        if self._size is not None:
            return self
        shape, size = self.image_shape, None
        if shape is None:
            if image_size is None:
                raise UserError("The images of this data set differ in size; give an image_size.")
            shape, size = (image_size, image_size, 3), image_size
        wanted = size, crop_ratio
        if wanted not in self._sized:
            split = EncodedSplit(self._records, shape, self._on_corrupt, size, crop_ratio)
            small = len(self) * np.prod(shape) <= MAX_CACHE_BYTES
            self._sized[wanted] = CachedSplit(split, shape) if small else split
        return self._sized[wanted]

    def joined(self, other: Split) -> Split:
        if not isinstance(other, EncodedSplit) or self.image_shape != other.image_shape:
            return super().joined(other)
        records = JoinedRecords(self._records, other._records)
        return EncodedSplit(records, self.image_shape, self._on_corrupt)

    def cropped(self, image_size: int, crop: RandomCrop) -> "CroppedSplit":
        return CroppedSplit(self._records, self._on_corrupt, image_size, crop)

    def _read(self, index: int, key: Key) -> tuple[np.ndarray, int]:
        try:
            encoded, label = self._records[index]
            image = self._decode(encoded, key)
        except UserError:
            raise
        except Exception as error:  # decoders raise exceptions of many types for broken files
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise CorruptImage(
                f"The image {self._records.name(index)} cannot be read ({reason})."
            ) from error
        if (turned := orientation(encoded)) != 1:
            self._note_turned(index, turned)
        return image, label

    def _decode(self, encoded: bytes, key: Key) -> np.ndarray:
        del key  # nothing is random
        return decode(encoded, self._size, self._crop_ratio)

    def _note_skipped(self, index: int, error: CorruptImage):
        if index not in self._skipped:
            self._skipped.add(index)
            logger.warning("%s It is skipped (%d so far).", error, len(self._skipped))

    def _note_turned(self, index: int, turned: int):
        """Count an image that carries an EXIF orientation; say so at 1, 10, 100 ... of them."""
        with _counting:
            if self._turned is None:
                self._turned = np.zeros(len(self), bool)
            if self._turned[index]:
                return
            self._turned[index] = True
            count = int(self._turned.sum())
        if str(count).rstrip("0") == "1":
            logger.warning(
                "The image %s carries an EXIF orientation (%d); these are not followed, as in "
                "torchvision's loaders: images are seen as they are stored (%s of %s so far).",
                self._records.name(index),
                turned,
                f"{count:,}",
                f"{len(self):,}",
            )


class CroppedSplit(EncodedSplit):
    """A split that crops every image at random, by the key with which it is read."""

    def __init__(self, records: Records, on_corrupt: str, image_size: int, crop: RandomCrop):
        super().__init__(records, (image_size, image_size, 3), on_corrupt, image_size)
        self._image_size, self._crop = image_size, crop

    def _decode(self, encoded: bytes, key: Key) -> np.ndarray:
        return decode_crop(encoded, self._image_size, lambda w, h: self._crop.box(w, h, key))


class CachedSplit(Split):
    """A split of images of one shape that is decoded once and then read from memory.

    Several threads may fill the cache at once: they write equal values.
    """

    in_memory = True

    def __init__(self, split: EncodedSplit, image_shape: ImageShape):
        self.image_shape = image_shape
        self._split = split
        # The operating system provides the memory page by page, as images are written.
        self._images = np.empty((len(split), *image_shape), np.uint8)
        self._labels = np.empty(len(split), np.int32)
        self._index = np.empty(len(split), np.int32)
        self._ready = np.zeros(len(split), bool)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Example:
        return self._split[index]

    def gather(self, indices: np.ndarray, keys: Sequence[Key] = ()) -> Batch:
        del keys  # nothing is random
        for missing in indices[~self._ready[indices]]:
            example = self._split[int(missing)]
            self._images[missing] = example["image"]
            self._labels[missing] = example["label"]
            self._index[missing] = example["index"]
            self._ready[missing] = True
        return {
            "image": self._images[indices],
            "label": self._labels[indices],
            "index": self._index[indices],
        }

    def load(self) -> Batch:
        indices = np.arange(len(self), dtype=np.int32)
        parts = np.array_split(indices, max(1, len(indices) // 256))
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for _ in pool.map(self.gather, parts):
                pass
        return self.gather(indices)

    def for_workers(self) -> EncodedSplit:
        return self._split  # every worker process would fill a cache of its own
