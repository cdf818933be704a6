"""Image files that no data set lists, as `bocb predict` reads them."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps
from PIL.Image import Resampling

from bocb_jax.data.coco import Annotations
from bocb_jax.data.decode import decode
from bocb_jax.data.exif import orientation, turned
from bocb_jax.data.listing import is_image_name, read_file, shown
from bocb_jax.errors import UserError
from bocb_jax.pose.skeleton import Skeleton


@dataclasses.dataclass(frozen=True)
class Photo:
    """An image file, turned upright as its EXIF orientation says.

    Data sets for classification are read without turning, as in other loaders.

    Attributes:
      name: what messages call it.
      encoded: the bytes of the file.
    """

    name: str
    encoded: bytes

    def pixels(self) -> np.ndarray:
        """Return the image, (H, W, 3) uint8."""
        return self._decoded()

    def square(self, size: int, crop_ratio: float = 1.0) -> np.ndarray:
        """Return its center as an evaluation reads it, (size, size, 3) uint8; see `decode`."""
        return self._decoded(size, crop_ratio)

    def fitted(self, height: int, width: int) -> np.ndarray:
        """Return the largest central part of an aspect, resized: (height, width, 3) uint8."""
        if height == width:
            return self.square(height)
        image = Image.fromarray(self.pixels())
        return np.asarray(ImageOps.fit(image, (width, height), Resampling.BICUBIC))

    def _decoded(self, size: int | None = None, crop_ratio: float = 1.0) -> np.ndarray:
        """Return the decoded image upright.

        Raises:
          UserError: it cannot be decoded.
        """
        try:
            pixels = decode(self.encoded, size, crop_ratio)
        except Exception as error:  # decoders raise exceptions of many types for broken files
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UserError(f"The image '{self.name}' cannot be decoded ({reason}).") from error
        return np.ascontiguousarray(turned(pixels, orientation(self.encoded)))


def read_photo(path: str) -> Photo:
    """Read an image file.

    Raises:
      UserError: it is not there, no regular file, too large, or cannot be read.
    """
    try:
        return Photo(shown(path), read_file(path))
    except OSError as error:
        reason = "it is a folder" if os.path.isdir(path) else error.strerror or str(error)
        raise UserError(f"The image '{shown(path)}' cannot be read: {reason}.") from error


def photos_in(path: str) -> list[str]:
    """Return a path as it is, or, of a folder, the paths of the image files in it, sorted.

    Raises:
      UserError: it is a folder without images, or one that cannot be read.
    """
    if not os.path.isdir(path):
        return [path]
    try:
        names = sorted(filter(is_image_name, os.listdir(path)))
    except OSError as error:
        raise UserError(f"The folder '{shown(path)}' cannot be read: {error.strerror}.") from error
    found = [os.path.join(path, name) for name in names]
    found = [name for name in found if not os.path.isdir(name)]
    if not found:
        raise UserError(f"The folder '{shown(path)}' holds no image.")
    return found


class Unannotated:
    """Images in memory with neither boxes nor joints, for the splits that read annotated ones.

    Args:
      images: each (H, W, 3) uint8.
      skeleton: of the joints that are looked for, if any.
    """

    def __init__(self, images: Sequence[np.ndarray], skeleton: Skeleton | None = None):
        self._images = images
        count, joints = len(images), 0 if skeleton is None else len(skeleton)
        self.annotations = Annotations(
            source="images",
            image_ids=np.arange(count),
            file_names=tuple(map(str, range(count))),
            sizes=np.array([image.shape[1::-1] for image in images], np.int32).reshape(-1, 2),
            category_ids=np.zeros(0, np.int64),
            category_names=(),
            ids=np.zeros(0, np.int64),
            image=np.zeros(0, np.int32),
            labels=np.zeros(0, np.int32),
            boxes=np.zeros((0, 4)),
            areas=np.zeros(0),
            crowd=np.zeros(0, bool),
            ignored=np.zeros(0, bool),
            joints=None if skeleton is None else np.zeros((0, joints, 2)),
            visible=None if skeleton is None else np.zeros((0, joints), np.int8),
            skeleton=skeleton,
        )

    def read(self, index: int) -> np.ndarray:
        """Return an image, (H, W, 3) uint8."""
        return self._images[index]
