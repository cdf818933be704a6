"""Boxes and joints of a split, as arrays: what a file in COCO's format says.

`bocb_jax.data.coco_json` reads and checks such files, `bocb_jax.data.coco_folder` finds them, and
`bocb_jax.data.shapes` draws a data set of this kind.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bocb_jax.pose.skeleton import Skeleton

LEAST_SIDE = 32  # pixels of an image that is trained on, as in MMDetection
PADDING_LABEL = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """N images with M annotations of C categories; persons among them may have K joints.

    Attributes:
      source: what messages call the data, such as the path of the file.
      image_ids: (N,) int64.
      file_names: of the images, relative to their folder.
      sizes: (N, 2) int32, width and height of each image in pixels.
      category_ids: (C,) int64, rising; label i is category i of these.
      category_names: one for each category.
      ids: (M,) int64, of the annotations, which are sorted by image.
      image: (M,) int32, the index of each annotation's image.
      labels: (M,) int32 in 0 ... C - 1.
      boxes: (M, 4) float64 as in the file: left, top, width, height in pixels.
      areas: (M,) float64, of the object in pixels squared.
      crowd: (M,) booleans: regions of many objects, in which a detection counts neither way.
      ignored: (M,) booleans: marked "ignore" in the file, which training heeds and COCO's scores do
        not.
      joints: (M, K, 2) float64, x and y in pixels; None if the data have no joints.
      visible: (M, K) int8: 0 not labelled, 1 hidden, 2 visible; None likewise.
      skeleton: the joints; None likewise.
      notes: sentences on what was found.
    """

    source: str
    image_ids: np.ndarray
    file_names: tuple[str, ...]
    sizes: np.ndarray
    category_ids: np.ndarray
    category_names: tuple[str, ...]
    ids: np.ndarray
    image: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    joints: np.ndarray | None = None
    visible: np.ndarray | None = None
    skeleton: Skeleton | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    @functools.cached_property
    def corners(self) -> np.ndarray:
        """Boxes as left, top, right, bottom, (M, 4) float64."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], 1)

    @functools.cached_property
    def clipped(self) -> np.ndarray:
        """`corners` cut to 0 ... width and 0 ... height of the image, (M, 4) float64."""
        return np.clip(self.corners, 0, np.tile(self.sizes, 2)[self.image])

    @functools.cached_property
    def usable(self) -> np.ndarray:
        """Which boxes train a detector, (M,) booleans.

        As in MMDetection: neither crowds nor ignored, at least one pixel wide and high, of positive
        area, and at least partly in the image.
        """
        inside = (self.clipped[:, 2:] > self.clipped[:, :2]).all(1)
        large = (self.areas > 0) & (self.boxes[:, 2:] >= 1).all(1)
        return ~self.crowd & ~self.ignored & inside & large

    @functools.cached_property
    def persons(self) -> np.ndarray:
        """Indices of the annotations that train a pose net, int32.

        As in MMPose: no crowds, at least one labelled joint, and a box with pixels in the image.
        """
        if self.visible is None:
            return np.zeros(0, np.int32)
        last = np.tile(self.sizes, 2)[self.image] - 1
        corners = np.clip(self.corners, 0, last)
        has_box = (corners[:, 2:] > corners[:, :2]).all(1)
        return np.flatnonzero(~self.crowd & has_box & self.visible.any(1)).astype(np.int32)

    @functools.cached_property
    def trained_images(self) -> np.ndarray:
        """Indices of the images that train a detector, int32.

        As in MMDetection: with at least one annotation, and no side below 32 pixels.
        """
        annotated = np.bincount(self.image, minlength=len(self)) > 0
        large = self.sizes.min(1) >= LEAST_SIDE
        return np.flatnonzero(annotated & large).astype(np.int32)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Where the annotations of each image begin, (N + 1,)."""
        return np.searchsorted(self.image, np.arange(len(self) + 1))

    @functools.cached_property
    def capacity(self) -> int:
        """The largest number of usable boxes in an image, at least 1."""
        counts = np.bincount(self.image[self.usable], minlength=1)
        return max(int(counts.max()), 1)

    def padded_boxes(self, index: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the usable boxes of an image, filled up to a fixed number.

        Args:
          index: of the image.
          capacity: number of rows; further boxes are left out.

        Returns:
          (capacity, 4) float32: left, top, right, bottom, zeros where there is no box; and labels
          (capacity,) int32, -1 there.
        """
        of_image = np.arange(self.starts[index], self.starts[index + 1])
        chosen = of_image[self.usable[of_image]][:capacity]
        boxes = np.zeros((capacity, 4), np.float32)
        labels = np.full(capacity, PADDING_LABEL, np.int32)
        boxes[: len(chosen)] = self.corners[chosen]
        labels[: len(chosen)] = self.labels[chosen]
        return boxes, labels

    def subset(self, images: Sequence[int] | np.ndarray) -> "Annotations":
        """Return some images with their annotations, in the given order."""
        images = np.asarray(images, np.int64)
        runs = [np.arange(self.starts[i], self.starts[i + 1]) for i in images]
        chosen = np.concatenate([*runs, np.zeros(0, np.int64)]).astype(np.int64)
        counts = [len(run) for run in runs]
        fields = ("ids", "labels", "boxes", "areas", "crowd", "ignored", "joints", "visible")
        arrays: dict[str, Any] = {name: getattr(self, name) for name in fields}
        arrays = {name: None if x is None else x[chosen] for name, x in arrays.items()}
        return dataclasses.replace(
            self,
            image_ids=self.image_ids[images],
            file_names=tuple(self.file_names[i] for i in images),
            sizes=self.sizes[images],
            image=np.repeat(np.arange(len(images), dtype=np.int32), counts),
            **arrays,
        )

    def as_json(self) -> dict[str, Any]:
        """Return images, annotations and categories in COCO's format, as an evaluation needs."""
        categories: list[dict[str, Any]] = [
            {"id": int(number), "name": name}
            for number, name in zip(self.category_ids, self.category_names, strict=True)
        ]
        annotations = [
            {
                "id": int(self.ids[i]),
                "image_id": int(self.image_ids[self.image[i]]),
                "category_id": int(self.category_ids[self.labels[i]]),
                "bbox": self.boxes[i].tolist(),
                "area": float(self.areas[i]),
                "iscrowd": int(self.crowd[i]),
            }
            for i in range(len(self.ids))
        ]
        if self.joints is not None and self.visible is not None and self.skeleton is not None:
            triples = np.concatenate([self.joints, self.visible[..., None]], -1)
            for annotation, triple in zip(annotations, triples, strict=True):
                annotation["keypoints"] = triple.ravel().tolist()
                annotation["num_keypoints"] = int((triple[:, 2] > 0).sum())
            for category in categories:
                category["keypoints"] = list(self.skeleton.names)
        images = [
            {"id": int(number), "file_name": name, "width": int(width), "height": int(height)}
            for number, name, (width, height) in zip(
                self.image_ids, self.file_names, self.sizes, strict=True
            )
        ]
        return {"images": images, "annotations": annotations, "categories": categories}


class AnnotatedImages(Protocol):
    """Images with annotations; what detection and pose estimation read. Must be picklable."""

    @property
    def annotations(self) -> Annotations: ...

    def read(self, index: int) -> np.ndarray:
        """Return an image, (H, W, 3) uint8."""
