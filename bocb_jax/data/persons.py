"""Crops of persons, as a split that `bocb_jax.data.pipeline` reads like any other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bocb_jax.data.coco import AnnotatedImages
from bocb_jax.data.dataset import Batch, Example, Key, Split
from bocb_jax.data.detections import Detections
from bocb_jax.data.warp import warp
from bocb_jax.errors import UserError
from bocb_jax.pose import boxes
from bocb_jax.pose.augmentation import Crop, PoseAugmentation, augment, draw


class PersonCrops(Split):
    """Persons, one example each: the crop that a pose net sees, and the joints in it.

    An example has "image" (H, W, 3) uint8, "joints" (K, 2) float32 in pixels of the crop, "visible"
    (K,) int8 and "index". What is random about it is a pure function of its key.

    Attributes:
      annotations: of the images.
      image: (P,) int32, the index of each person's image.
      center: (P, 2) float64, the middle of each crop without augmentation, in pixels of the image.
      size: (P, 2) float64, width and height of it, of the input's aspect.
      scores: (P,) float64, of the detector; ones for annotated boxes.

    Args:
      images: with annotations that have joints.
      input_size: (width, height) of the crops in pixels.
      augmentation: what is random; None for evaluation.
      detections: boxes to take in place of the annotated ones; these have no joints.
      padding: of the boxes.

    Raises:
      UserError: the annotations have no joints, or no person to train on.
    """

    def __init__(
        self,
        images: AnnotatedImages,
        input_size: tuple[int, int] = (192, 256),
        *,
        augmentation: PoseAugmentation | None = None,
        detections: Detections | None = None,
        padding: float = 1.25,
    ):
        found = images.annotations
        if found.skeleton is None:
            raise UserError(f"'{found.source}' was read without joints; open it for pose.")
        if augmentation is not None and detections is not None:
            raise UserError("Boxes of a detector have no joints, and cannot train a pose net.")
        self.annotations, self.skeleton = found, found.skeleton
        self.image_shape = (input_size[1], input_size[0], 3)
        self._images, self._input_size, self._augmentation = images, input_size, augmentation
        count = len(found.persons) if detections is None else len(detections.scores)
        self._joints = np.zeros((count, len(self.skeleton), 2))
        self._visible = np.zeros((count, len(self.skeleton)), np.int8)
        if detections is not None:
            self.image, self.scores, corners = (
                detections.image, detections.scores, detections.corners
            )  # fmt: skip
        else:
            persons = found.persons
            assert found.joints is not None
            assert found.visible is not None
            self.image, self.scores = found.image[persons], np.ones(count)
            self._joints, self._visible = found.joints[persons], found.visible[persons]
            width, height = found.sizes[self.image].T
            corners = boxes.clip_boxes(found.corners[persons], width, height)
        if not count:
            raise UserError(
                f"'{found.source}' has no person with a labelled joint and a box in its image."
            )
        self.center, self._padded = boxes.center_and_size(corners, padding)
        self.size = self._fit(self._padded)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> Example:
        center, size = self.center[index], self._padded[index]
        joints, visible = self._joints[index], self._visible[index]
        return self._cut(index, Crop(center, size, np.float64(0), joints, visible, np.False_))

    def draw(self, index: int, key: Key) -> Example:
        """Return the crop of a person; anything random about it depends on `key` alone."""
        if self._augmentation is None or not key:
            return self[index]
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        crop = augment(
            self.center[index],
            self._padded[index],
            self._joints[index],
            self._visible[index],
            self._width(index),
            draw(self._augmentation, generator),
            self._augmentation,
            self.skeleton,
        )
        return self._cut(index, crop)

    def gather(self, indices: np.ndarray, keys: Sequence[Key] = ()) -> Batch:
        """Return examples stacked along a new first axis; see `Split.gather`."""
        return self._stacked(indices, keys)

    def _cut(self, index: int, crop: Crop) -> dict[str, Any]:
        size = self._fit(crop.size)
        matrix = boxes.crop_matrix(crop.center, size, crop.rotation, self._input_size)
        joints = boxes.transform(crop.joints, matrix)
        if crop.flip:  # joints are mirrored already; the image is mirrored by the matrix
            matrix = matrix.copy()
            matrix[:, 2] += matrix[:, 0] * (self._width(index) - 1)
            matrix[:, 0] *= -1
        return {
            "image": warp(self._images.read(int(self.image[index])), matrix, self._input_size),
            "joints": joints.astype(np.float32),
            "visible": np.asarray(crop.visible, np.int8),
            "index": np.int32(index),
        }

    def _fit(self, size: np.ndarray) -> np.ndarray:
        return boxes.fit_aspect(size, self._input_size[0] / self._input_size[1])

    def _width(self, index: int) -> int:
        return int(self.annotations.sizes[self.image[index], 0])
