"""The data set `shapes`: stick figures and plain shapes over photographs, in COCO's format.

It is drawn when it is read, so that detection and pose estimation can be tried with no download.
What an image shows is a pure function of the seed, the split and the index; its pixels also depend
on the version of Pillow, in their last bits. The photographs are the two of scikit-learn
(china.jpg and flower.jpg, CC BY).
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.Image import Resampling

from bocb_jax.data.coco import Annotations
from bocb_jax.data.coco_json import PERSON_SHARE, annotations_from_json
from bocb_jax.data.decode import decode
from bocb_jax.data.figures import SHAPES, Figure, Shape, random_figure, random_shape
from bocb_jax.errors import UserError
from bocb_jax.pose.skeleton import COCO_PERSON

CATEGORIES = ("person", *SHAPES)
IMAGES = {"train": 1000, "validation": 200, "test": 200}
SIDE = 128  # pixels

_PHOTOGRAPHS = ("china.jpg", "flower.jpg")
_ENLARGED = 2  # drawn at twice the size and averaged, for smooth edges
# Shares of the image's side.
_FIGURE, _RADIUS = (0.5, 0.8), (0.08, 0.18)
_MOST_FIGURES, _MOST_SHAPES = 2, 4
_TRIES, _MOST_OVERLAP = 20, 0.15


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What an image shows: things in the order in which they are painted, and the photograph."""

    things: tuple[Figure | Shape, ...]
    photograph: int
    cut: tuple[float, float, float, float]  # left, top, right, bottom as shares of the photograph
    mirrored: bool
    light: float

    def visible(self, place: int) -> np.ndarray:
        """Return 2 for each joint of a figure, and 1 where a later shape covers it, (K,)."""
        figure = self.things[place]
        assert isinstance(figure, Figure)
        hidden = np.zeros(len(figure.joints), bool)
        for thing in self.things[place + 1 :]:
            if isinstance(thing, Shape):
                hidden |= thing.covers(figure.joints)
        return np.where(hidden, 1, 2)


def compose(seed: int, split: str, index: int, side: int = SIDE) -> Scene:
    """Return what an image of the data set shows: one or two figures and up to four shapes.

    Args:
      seed: of the data set.
      split: "train", "validation" or "test".
      index: of the image in the split.
      side: of the image in pixels.
    """
    key = (seed, list(IMAGES).index(split), index)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    things: list[Figure | Shape] = []
    figures = int(generator.integers(1, _MOST_FIGURES + 1))
    for number in range(figures + int(generator.integers(1, _MOST_SHAPES + 1))):
        if number < figures:
            made: Figure | Shape = random_figure(generator, side * generator.uniform(*_FIGURE))
        else:
            name = SHAPES[int(generator.integers(len(SHAPES)))]
            made = random_shape(generator, name, side * generator.uniform(*_RADIUS))
        placed = _placed(generator, made, things, side)
        if placed is not None:
            things.append(placed)
    share = generator.uniform(0.25, 1.0)
    left, top = generator.uniform(0, 1 - share, 2)
    return Scene(
        tuple(things),
        int(generator.integers(len(_PHOTOGRAPHS))),
        (left, top, left + share, top + share),
        bool(generator.integers(2)),
        generator.uniform(0.5, 1.2),
    )


def _placed(
    generator: np.random.Generator,
    thing: Figure | Shape,
    others: list[Figure | Shape],
    side: int,
) -> Figure | Shape | None:
    """Return a thing somewhere in the image, away from others; None if there is no room for it."""
    left, top, right, bottom = thing.box.tolist()
    width, height = right - left, bottom - top
    if max(width, height) > side - 1:
        return None
    boxes = [other.box.tolist() for other in others]
    for _ in range(_TRIES):
        x = generator.uniform(0, side - 1 - width)
        y = generator.uniform(0, side - 1 - height)
        box = (x, y, x + width, y + height)
        if all(_overlap(box, other) <= _MOST_OVERLAP for other in boxes):
            return thing.moved(np.array([x - left, y - top]))
    return None


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the share of the smaller of two boxes that lies in the other one."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(width, 0.0) * max(height, 0.0) / min(areas)


def paint(scene: Scene, side: int = SIDE) -> np.ndarray:
    """Return a scene as an image, (side, side, 3) uint8."""
    photograph = _photograph(scene.photograph)
    left, top, right, bottom = scene.cut
    width, height = photograph.size
    large = (side * _ENLARGED,) * 2
    cut = (left * width, top * height, right * width, bottom * height)
    image = photograph.resize(large, Resampling.BILINEAR, cut, reducing_gap=2.0)
    if scene.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.point([min(round(value * scene.light), 255) for value in range(256)] * 3)
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        thing.paint(draw, _ENLARGED)
    return np.array(image.resize((side, side), Resampling.BOX), np.uint8)


@functools.cache
def _photograph(number: int) -> Image.Image:
    # Read from scikit-learn's files: importing it takes as long as compiling a small network.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The photographs behind the shapes come with scikit-learn; install it (pip install "
            "scikit-learn)."
        )
    folder = os.path.join(spec.submodule_search_locations[0], "datasets", "images")
    with open(os.path.join(folder, _PHOTOGRAPHS[number]), "rb") as file:
        return Image.fromarray(decode(file.read()))


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnSplit:
    """The images of a split with their annotations; `read` draws one.

    Attributes:
      annotations: what is in the images.
      split: "train", "validation" or "test".
      seed: of the data set.
      side: of the images in pixels.
    """

    annotations: Annotations
    split: str
    seed: int
    side: int

    def __len__(self) -> int:
        return len(self.annotations)

    def read(self, index: int) -> np.ndarray:
        """Return an image, (side, side, 3) uint8."""
        number = int(self.annotations.image_ids[index]) - 1  # of a subset as well
        return paint(compose(self.seed, self.split, number, self.side), self.side)


def open_shapes(
    task: str, *, seed: int = 0, side: int = SIDE, images: dict[str, int] | None = None
) -> dict[str, DrawnSplit]:
    """Open the drawn data set.

    Args:
      task: "detection" or "pose".
      seed: other seeds give other images.
      side: of the images in pixels, at least 32.
      images: number of images by split; by default 1000 to train and 200 each to validate and test.

    Raises:
      UserError: another task, or images too small.
    """
    if task not in ("detection", "pose"):
        raise UserError(f"The task is 'detection' or 'pose', not '{task}'.")
    if side < 32:
        raise UserError(f"Images of the shapes have at least 32 pixels a side, not {side}.")
    return {
        split: DrawnSplit(_annotations(task, seed, split, count, side), split, seed, side)
        for split, count in (images or IMAGES).items()
    }


def _annotations(task: str, seed: int, split: str, count: int, side: int) -> Annotations:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = compose(seed, split, index, side)
        number = index + 1
        name = f"{split}/{number:06}.png"
        images.append({"id": number, "file_name": name, "width": side, "height": side})
        for place, thing in enumerate(scene.things):
            left, top, right, bottom = thing.box.round(2).tolist()
            # A pixel reaches half a pixel to either side of its center.
            box = [left + 0.5, top + 0.5, right - left, bottom - top]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": CATEGORIES.index(thing.name) + 1,
                "bbox": box,
                "iscrowd": 0,
            }
            if isinstance(thing, Shape):
                annotation["area"] = round(thing.area, 2)
            else:
                annotation["area"] = round(PERSON_SHARE * box[2] * box[3], 2)
                triples = np.column_stack([thing.joints.round(2), scene.visible(place)])
                annotation["keypoints"] = triples.ravel().tolist()
            annotations.append(annotation)
    categories: list[dict[str, Any]] = [
        {"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)
    ]
    categories[0]["keypoints"] = list(COCO_PERSON.names)
    categories[0]["skeleton"] = [[a + 1, b + 1] for a, b in COCO_PERSON.limbs]
    data = {"images": images, "annotations": annotations, "categories": categories}
    return annotations_from_json(data, f"shapes ({split})", joints=task == "pose")
