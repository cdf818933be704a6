"""Images that lie encoded in files or records: decoding, sizes, unreadable ones, and a cache.

Everything decodes to RGB uint8: grey is repeated, an alpha channel dropped, 16 bits scaled to 8,
the first frame of an animation taken. The orientation tag of cameras is not followed, as in the
field's common loaders, so that results compare.
"""

import contextlib
import dataclasses
import io
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import simplejpeg
from PIL import Image
from PIL.Image import Resampling

from bocb_jax.data.registry import Example
from bocb_jax.errors import UserError

try:
    import cykooz_resizer
except ImportError:  # no wheel, as for Linux on ARM
    cykooz_resizer = None

logger = logging.getLogger(__name__)

# Decoded splits up to this many bytes are kept in memory after the first reading.
CACHE_BYTES = 512 * 2**20
# As many unreadable images in a row are no accident.
MOST_SKIPPED = 1000

# A resizer keeps its memory from one image to the next, and serves one thread.
_kept = threading.local()


class CorruptImage(Exception):
    """An image that cannot be decoded; the message names it."""


class Records(Protocol):
    """Encoded images by index. Must be picklable, for worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""

    def name(self, index: int) -> str:
        """What to call the image in messages: its path, or its place."""


class Subset:
    """Some of other records, in the given order."""

    def __init__(self, records: Records, indices: Sequence[int]):
        self._records = records
        self._indices = np.asarray(indices, np.int32)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self._records[int(self._indices[index])]

    def name(self, index: int) -> str:
        return self._records.name(int(self._indices[index]))


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Inception's crop (Szegedy et al., 2015, arXiv 1409.4842): a random share at a random aspect.

    Args:
      scale: least and largest share of the image's area.
      ratio: least and largest width over height; drawn evenly on a logarithmic scale.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def box(self, width: int, height: int, key: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in pixels; a pure function of the arguments."""
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random
        for _ in range(10):
            area = width * height * np.interp(draw(), (0, 1), self.scale)
            aspect = np.exp(np.interp(draw(), (0, 1), np.log(self.ratio)))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(draw() * (width - w + 1)), int(draw() * (height - h + 1))
                return left, top, left + w, top + h
        # None fitted: as much of the middle as the nearest aspect allows.
        aspect = np.clip(width / height, *self.ratio)
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


class Joined:
    """Two sets of records, one after the other."""

    def __init__(self, first: Records, second: Records):
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        records, index = self._find(index)
        return records[index]

    def name(self, index: int) -> str:
        records, index = self._find(index)
        return records.name(index)

    def _find(self, index: int) -> tuple[Records, int]:
        first = len(self._first)
        return (self._first, index) if index < first else (self._second, index - first)


class EncodedSplit:
    """A split whose images are decoded when they are read.

    Args:
      records: where the encoded images come from.
      image_shape: (H, W, 3) that all images have, or None where sizes vary.
      on_corrupt: "fail" raises at an unreadable image; "skip" gives the next readable one instead,
        under its own index.
      size: bring every image to size x size.
      crop_ratio: how much of the shorter side is kept then.
    """

    def __init__(
        self,
        records: Records,
        image_shape: tuple[int, int, int] | None = None,
        on_corrupt: str = "fail",
        size: int | None = None,
        crop_ratio: float = 1.0,
    ):
        self.image_shape = image_shape
        self._records = records
        self._on_corrupt = on_corrupt
        self._size, self._crop_ratio = size, crop_ratio
        self._sized: dict[tuple[int | None, float], EncodedSplit | CachedSplit] = {}
        self._skipped: set[int] = set()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self.draw(index, ())

    def draw(self, index: int, key: tuple[int, ...]) -> Example:
        """The example at `index`; what is random about it is a pure function of `key`."""
        for found in range(index, index + min(len(self), MOST_SKIPPED)):
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
            f"None of the {min(len(self), MOST_SKIPPED):,} images from {self._records.name(index)} "
            "on can be read."
        )

    def sized(
        self, image_size: int | None, crop_ratio: float = 1.0
    ) -> "EncodedSplit | CachedSplit":
        """This split with images of one size, kept in memory where that is cheap.

        Images that are all of one size already stay so, whatever `image_size`: enlarging them is
        cheaper on the device.

        Raises:
          UserError: sizes vary and `image_size` is None.
        """
        shape, size = self.image_shape, None
        if shape is None:
            if image_size is None:
                raise UserError("The images of this data set differ in size; give an image_size.")
            shape, size = (image_size, image_size, 3), image_size
        wanted = size, crop_ratio
        if wanted not in self._sized:
            split = EncodedSplit(self._records, shape, self._on_corrupt, size, crop_ratio)
            small = len(self) * np.prod(shape) <= CACHE_BYTES
            self._sized[wanted] = CachedSplit(split) if small else split
        return self._sized[wanted]

    def joined(self, other: "EncodedSplit") -> "EncodedSplit":
        """The examples of both."""
        records = Joined(self._records, other._records)
        return EncodedSplit(records, self.image_shape, self._on_corrupt)

    def cropped(self, image_size: int, crop: RandomCrop) -> "CroppedSplit":
        """This split with random crops of its images, brought to image_size x image_size."""
        return CroppedSplit(self._records, self._on_corrupt, image_size, crop)

    def _read(self, index: int, key: tuple[int, ...]) -> tuple[np.ndarray, int]:
        try:
            encoded, label = self._records[index]
            return self._decode(encoded, key), label
        except Exception as error:  # Pillow raises of many kinds for broken files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CorruptImage(
                f"The image {self._records.name(index)} cannot be read ({reason})."
            ) from error

    def _decode(self, encoded: bytes, key: tuple[int, ...]) -> np.ndarray:
        return decode(encoded, self._size, self._crop_ratio)

    def _note_skipped(self, index: int, error: CorruptImage):
        if index not in self._skipped:
            self._skipped.add(index)
            logger.warning("%s It is skipped (%d so far).", error, len(self._skipped))


class CroppedSplit(EncodedSplit):
    """A split of which every reading gives another crop, by the key of the reading."""

    def __init__(self, records: Records, on_corrupt: str, image_size: int, crop: RandomCrop):
        super().__init__(records, (image_size, image_size, 3), on_corrupt, image_size)
        self._crop = crop

    def sized(self, image_size: int | None, crop_ratio: float = 1.0) -> "CroppedSplit":
        """Itself: its images have one size."""
        return self

    def _decode(self, encoded: bytes, key: tuple[int, ...]) -> np.ndarray:
        return decode_crop(encoded, self._size, lambda w, h: self._crop.box(w, h, key))


class CachedSplit:
    """A split of equal images that is decoded once and then read from memory.

    Threads may fill it at the same time: they write equal values.
    """

    def __init__(self, split: EncodedSplit):
        self.image_shape = split.image_shape
        self.split = split
        # Memory is taken page by page, as the images are written.
        self._images = np.empty((len(split), *split.image_shape), np.uint8)
        self._labels = np.empty(len(split), np.int32)
        self._index = np.empty(len(split), np.int32)
        self._ready = np.zeros(len(split), bool)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Example:
        return self.split[index]

    def gather(self, indices: np.ndarray) -> Example:
        """The examples at `indices` as one batch."""
        for missing in indices[~self._ready[indices]]:
            example = self.split[int(missing)]
            self._images[missing] = example["image"]
            self._labels[missing] = example["label"]
            self._index[missing] = example["index"]
            self._ready[missing] = True
        return {
            "image": self._images[indices],
            "label": self._labels[indices],
            "index": self._index[indices],
        }


def decode(encoded: bytes, size: int | None = None, crop_ratio: float = 1.0) -> np.ndarray:
    """Decodes an image file to (H, W, 3) uint8, or to (size, size, 3).

    Args:
      encoded: the bytes of a file in any format that Pillow knows.
      size: the shorter side is brought to `size / crop_ratio`, rounded down (bicubic), and the
        central square of `size` kept.
      crop_ratio: share of the shorter side that is kept.
    """
    if size is None:
        return _pixels(encoded, lambda width, height: 1.0)
    whole = int(size / crop_ratio)  # of the shorter side
    # Twice the target leaves the filter its work.
    image = Image.fromarray(_pixels(encoded, lambda width, height: 2 * whole / min(width, height)))
    if image.size != (size, size) or whole != size:
        short = min(image.size)
        width, height = (max(whole, int(side * whole / short)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Resampling.BICUBIC)
        image = image.crop((left, top, left + size, top + size))
    return np.array(image, np.uint8)


def decode_crop(
    encoded: bytes, size: int, choose: Callable[[int, int], tuple[int, int, int, int]]
) -> np.ndarray:
    """Decodes a part of an image file to (size, size, 3) uint8.

    Args:
      encoded: the bytes of a file in any format that Pillow knows.
      size: side of the result (bicubic).
      choose: from width and height to left, top, right and bottom of the part.
    """
    found = {}

    def scale(width, height):
        found["size"], found["box"] = (width, height), choose(width, height)
        left, top, right, bottom = found["box"]
        return 2 * size / min(right - left, bottom - top)

    pixels = _pixels(encoded, scale)
    height, width, _ = pixels.shape
    shares = width / found["size"][0], height / found["size"][1]
    # In steps of 1/256 pixel: unrounded, a box could end by the last bit outside the image.
    steps = [round(256 * at * share) for at, share in zip(found["box"], 2 * shares, strict=True)]
    return _resize(pixels, size, [step / 256 for step in steps])


def _resize(pixels: np.ndarray, size: int, box: Sequence[float]) -> np.ndarray:
    """Left, top, right and bottom of (H, W, 3) uint8, brought to (size, size, 3), bicubic.

    Pillow's filter with SIMD instructions, where there is a wheel of it. It goes over the columns
    first and Pillow over the rows; both round in between to whole levels of grey.
    """
    if cykooz_resizer is None:
        image = Image.fromarray(pixels).resize((size, size), Resampling.BICUBIC, tuple(box))
        return np.array(image, np.uint8)
    left, top, right, bottom = box
    height, width, _ = pixels.shape
    kind = cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(width, height, kind, pixels.tobytes())
    result = cykooz_resizer.ImageData(size, size, kind)
    options = cykooz_resizer.ResizeOptions(
        cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom),
        crop_box=cykooz_resizer.CropBox(left, top, right - left, bottom - top),
    )
    if not hasattr(_kept, "resizer"):
        _kept.resizer = cykooz_resizer.Resizer()
    _kept.resizer.resize(source, result, options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size, size, 3)


def _pixels(encoded: bytes, scale: Callable[[int, int], float]) -> np.ndarray:
    """An image as (H, W, 3) uint8.

    JPEG can decode at 1/2, 1/4 or 1/8 of its size: the smallest of these is taken that is no
    smaller than `scale(width, height)`.
    """
    pixels = _turbo(encoded, scale)
    return np.array(_pillow(encoded, scale)) if pixels is None else pixels


def _turbo(encoded: bytes, scale: Callable[[int, int], float]) -> np.ndarray | None:
    """By libjpeg-turbo directly, to the bits of Pillow, but faster; None for what it cannot do.

    That is other formats, four colors, odd subsampling and damaged files.
    """
    if encoded[:2] != b"\xff\xd8":
        return None
    with contextlib.suppress(ValueError):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
        if colors in ("YCbCr", "Gray", "RGB"):
            share = _jpeg_share(scale(width, height))
            least = math.ceil(height * share), math.ceil(width * share)
            return simplejpeg.decode_jpeg(encoded, min_height=least[0], min_width=least[1])
    return None


def _pillow(encoded: bytes, scale: Callable[[int, int], float]) -> Image.Image:
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        share = _jpeg_share(scale(width, height))
        image.draft(None, (math.ceil(width * share), math.ceil(height * share)))
        return _to_rgb(image)


def _jpeg_share(least: float) -> float:
    return next((share for share in (1 / 8, 1 / 4, 1 / 2) if share >= least), 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, whatever the byte order
        grey = np.asarray(image).astype(np.uint32) // 257
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA"):
        # Straight to RGB, Pillow warns of transparency.
        image = image.convert("RGBA")
    return image.convert("RGB")
