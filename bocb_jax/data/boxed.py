"""Images with boxes, resized into a few padded shapes, as a split that the pipeline reads."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from bocb_jax.data import grouped
from bocb_jax.data.coco import AnnotatedImages
from bocb_jax.data.dataset import Batch, Example, Key, Split
from bocb_jax.errors import UserError

Shape = tuple[int, int]  # (height, width)
PADDING = 32  # padded shapes are multiples of this: the stride of the coarsest map of a backbone


@dataclasses.dataclass(frozen=True)
class Resize:
    """How large images become, keeping their aspect.

    Attributes:
      long: the longer side is at most this many pixels.
      short: range of what the shorter side is at most, from which training draws; evaluation takes
        the upper end. MMDetection's 1x schedule has (800, 800), multi-scale training (640, 800).
      flip: probability of mirroring.
    """

    long: int = 1333
    short: tuple[int, int] = (800, 800)
    flip: float = 0.5

    def size(self, width: int, height: int, short: int) -> Shape:
        """Return the height and width of a resized image."""
        factor = min(self.long / max(width, height), short / min(width, height))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def padded_shapes(resize: Resize, number: int = 2) -> tuple[Shape, ...]:
    """Return shapes into which all images fit after resizing, smallest first.

    Each is compiled once. Two are those of MMDetection's groups, landscape and portrait; more waste
    fewer pixels: the longer side then grows in equal steps.

    Args:
      resize: of the images.
      number: of shapes, even; or 1, a square.

    Raises:
      UserError: another number.
    """
    short, long = (padded(side) for side in (resize.short[1], resize.long))
    if number == 1:
        return ((long, long),)
    if number < 2 or number % 2:
        raise UserError(f"Images have 1 or an even number of padded shapes, not {number}.")
    steps = number // 2
    sides = [padded(short + -((short - long) * (step + 1) // steps)) for step in range(steps)]
    shapes = {shape for side in sides for shape in ((short, side), (side, short))}
    return tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)))


class BoxedImages(Split):
    """Images of one split with their boxes.

    An example has "image" (H, W, 3) uint8, the resized image in the upper left of one of the padded
    shapes, zeros below and to the right; "size" (2,) int32, its height and width there; "scale"
    (2,) float32, pixels there for one of the file, in height and width; "boxes" (P, 4) float32,
    left, top, right, bottom in resized pixels; "label" (P,) int32, -1 where there is no box; and
    "index". What is random about it is a pure function of its key.

    Zeros are of the pixels, not of normalized ones: mask with "size" after normalizing.

    Attributes:
      annotations: of the images.
      groups: (N,) int32, the padded shape of each image.
      shapes: the padded shapes.

    Args:
      images: with annotations.
      resize: of the images.
      shapes: padded shapes, such as of `padded_shapes`.
      training: draw size and mirroring; images without boxes should be left out by `subset`.
      capacity: number of boxes in an example.

    Raises:
      UserError: an image fits none of the shapes.
    """

    def __init__(
        self,
        images: AnnotatedImages,
        resize: Resize,
        shapes: Sequence[Shape],
        *,
        training: bool = False,
        capacity: int | None = None,
    ):
        self.annotations = images.annotations
        self.shapes = tuple(shapes)
        self._images, self._resize, self._training = images, resize, training
        self._capacity = capacity or self.annotations.capacity
        self.groups = np.array([self._group(i) for i in range(len(self))], np.int32)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> Example:
        return self._resized(index, self._resize.short[1], mirrored=False)

    def draw(self, index: int, key: Key) -> Example:
        """Return an example; anything random about it depends on `key` alone."""
        if not self._training or not key:
            return self[index]
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        flip, low, high = generator.random(), *self._resize.short
        short = int(generator.integers(low, high + 1))
        return self._resized(index, short, mirrored=flip < self._resize.flip)

    def gather(self, indices: np.ndarray, keys: Sequence[Key] = ()) -> Batch:
        """Return examples stacked along a new first axis; see `Split.gather`.

        Raises:
          UserError: they are of different padded shapes.
        """
        found = sorted({self.shapes[self.groups[i]] for i in indices})
        if len(found) > 1:
            raise UserError(
                f"A batch would mix the padded shapes {found}; take a plan of "
                "bocb_jax.data.grouped with the groups of this split."
            )
        return self._stacked(indices, keys)

    def train_plan(self, batch_size: int, seed: int) -> grouped.GroupedTrainPlan:
        """Return a plan of endless batches of one padded shape each."""
        return grouped.GroupedTrainPlan(self.groups, batch_size, seed)

    def evaluation_plan(self, batch_size: int) -> grouped.GroupedEvaluationPlan:
        """Return a plan of one pass, in batches of one padded shape each."""
        return grouped.GroupedEvaluationPlan(self.groups, batch_size)

    def _resized(self, index: int, short: int, *, mirrored: bool) -> Example:
        pixels = self._images.read(index)
        height, width = pixels.shape[:2]
        new_height, new_width = self._resize.size(width, height, short)
        image = Image.fromarray(pixels).resize((new_width, new_height), Resampling.BILINEAR)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas = np.zeros((*self.shapes[self.groups[index]], 3), np.uint8)
        canvas[:new_height, :new_width] = image
        scale = np.array([new_height / height, new_width / width], np.float32)
        boxes, labels = self.annotations.padded_boxes(index, self._capacity)
        boxes = boxes * np.tile(scale[::-1], 2)
        limits = np.array([new_width, new_height] * 2, np.float32)
        boxes = np.clip(boxes, 0, limits)
        if mirrored:
            boxes = np.stack(
                [new_width - boxes[:, 2], boxes[:, 1], new_width - boxes[:, 0], boxes[:, 3]], 1
            )
            boxes[labels < 0] = 0
        return {
            "image": canvas,
            "size": np.array([new_height, new_width], np.int32),
            "scale": scale,
            "boxes": boxes.astype(np.float32),
            "label": labels,
            "index": np.int32(index),
        }

    def _group(self, index: int) -> int:
        """Return the smallest shape that holds an image at its largest size."""
        width, height = map(int, self.annotations.sizes[index])
        needed = self._resize.size(width, height, self._resize.short[1])
        for number, shape in enumerate(self.shapes):
            if needed[0] <= shape[0] and needed[1] <= shape[1]:
                return number
        raise UserError(
            f"The image '{self.annotations.file_names[index]}' has {needed[0]} x {needed[1]} "
            f"pixels (height x width) after resizing, more than any of the shapes {self.shapes}."
        )


def padded(side: Any) -> Any:
    """Return a side, or an array of sides, in pixels, raised to a multiple of `PADDING`."""
    return -(-side // PADDING) * PADDING
