"""What nets find in photographs: classes, boxes or joints, as `bocb predict` writes them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bocb_jax.augment.preprocess import preprocess
from bocb_jax.data.boxed import BoxedImages
from bocb_jax.data.detections import Detections
from bocb_jax.data.persons import PersonCrops
from bocb_jax.data.photo import Photo, Unannotated
from bocb_jax.errors import UserError
from bocb_jax.prediction.nets import (
    box_settings,
    detector,
    evaluation_settings,
    pose_net,
    resize_of,
    shapes_of,
)
from bocb_jax.prediction.recorded import Record
from bocb_jax.tasks.net import Net
from bocb_jax.tasks.pose import persons_in

Found: TypeAlias = dict[str, Any]  # of a photograph, in plain JSON types
# Left, top, width, height in pixels, and score, of each person in a photograph.
Boxes: TypeAlias = Sequence[Sequence[float]]
_MOST_CROPS = 16  # in a batch


class Predictor(Protocol):
    """Finds what its net was trained to find."""

    @property
    def batch_size(self) -> int:
        """Photographs that it takes at once."""

    def predict(self, photos: Sequence[Photo], boxes: Sequence[Boxes | None]) -> list[Found]:
        """Return what is found in each photograph.

        Args:
          photos: at most `batch_size`.
          boxes: the persons in each, for a pose net; None for one person who fills the image.

        Raises:
          UserError: one of them cannot be decoded.
        """


# --- Classes --------------------------------------------------------------------------------------


class Classifier:
    """Finds the most probable classes.

    Images are cut and resized as in an evaluation; one of the size of the data set's is as it is.

    Args:
      record: of the run.
      top: number of classes to name.
    """

    batch_size = 32

    def __init__(self, record: Record, top: int):
        images, self._names = record.images, record.names
        self._top = min(top, images.num_classes)
        self._size, self._crop_ratio = images.test_size or images.image_size, images.crop_ratio
        self._shape = record.data["image_shape"]
        _, self._weights, forward = record.load()
        # Each class of its own, where a run is trained so.
        chances = jax.nn.sigmoid if images.loss.startswith("bce") else jax.nn.softmax

        @jax.jit
        def probabilities(weights: Any, images: jax.Array) -> jax.Array:
            prepared = preprocess(
                images,
                image_size=self._size,
                mean=record.mean,
                std=record.std,
                crop_ratio=1.0 if self._shape is None else self._crop_ratio,
            )
            return chances(forward(weights, prepared))

        self._probabilities = probabilities

    def predict(self, photos: Sequence[Photo], boxes: Sequence[Boxes | None]) -> list[Found]:
        read = np.stack([self._read(photo) for photo in photos])
        found = np.asarray(self._probabilities(self._weights, _filled(read)))[: len(photos)]
        return [{"classes": self._best(each)} for each in found]

    def _read(self, photo: Photo) -> np.ndarray:
        if self._shape is None:
            return photo.square(self._size, self._crop_ratio)
        return photo.fitted(self._shape[0], self._shape[1])

    def _best(self, probabilities: np.ndarray) -> list[dict[str, Any]]:
        order = np.argsort(-probabilities, kind="stable")[: self._top]
        return [
            {"class": self._names[i], "index": int(i), "probability": float(probabilities[i])}
            for i in order
        ]


# --- Boxes ----------------------------------------------------------------------------------------


class BoxFinder:
    """Finds boxes of the categories that a detector was trained on, as its evaluation does."""

    batch_size = 1  # images differ in shape

    def __init__(self, record: Record):
        given = box_settings(record)
        self._names = record.names
        self._resize, self._shapes = resize_of(given), shapes_of(given)
        self._evaluate = _evaluation(record, detector(record))

    def predict(self, photos: Sequence[Photo], boxes: Sequence[Boxes | None]) -> list[Found]:
        return [self._find(photo) for photo in photos]

    def _find(self, photo: Photo) -> Found:
        pixels = photo.pixels()
        split = BoxedImages(Unannotated([pixels]), self._resize, self._shapes)
        found = self._evaluate(split.gather(np.zeros(1, np.int32)))
        real = found["labels"][0] >= 0
        rows = zip(
            found["boxes"][0][real], found["scores"][0][real], found["labels"][0][real], strict=True
        )
        boxes = [
            {"category": self._names[label], "score": float(score), "bbox": _bbox(corners)}
            for corners, score, label in rows
        ]
        return {**_size(pixels), "boxes": boxes}


# --- Joints ---------------------------------------------------------------------------------------


class JointFinder:
    """Finds the joints of persons in given boxes, without duplicates, as an evaluation does."""

    batch_size = 8

    def __init__(self, record: Record):
        net = pose_net(record)
        self._skeleton, self._input_size = net.skeleton, net.input_size
        self._soft_nms = evaluation_settings(record).soft_nms
        self._evaluate = _evaluation(record, net)

    def predict(self, photos: Sequence[Photo], boxes: Sequence[Boxes | None]) -> list[Found]:
        images = [photo.pixels() for photo in photos]
        found: list[Found] = [{**_size(pixels), "persons": []} for pixels in images]
        rows = [
            (number, *box)
            for number, (pixels, given) in enumerate(zip(images, boxes, strict=True))
            for box in ([(0, 0, *pixels.shape[1::-1], 1)] if given is None else given)
        ]
        if not rows:
            return found
        table = np.array(rows, np.float64)
        corners = np.concatenate([table[:, 1:3], table[:, 1:3] + table[:, 3:5]], 1)
        crops = PersonCrops(
            Unannotated(images, self._skeleton),
            self._input_size,
            detections=Detections(table[:, 0].astype(np.int32), corners, table[:, 5]),
        )
        parts = []
        for first in range(0, len(crops), _MOST_CROPS):
            indices = np.arange(first, min(first + _MOST_CROPS, len(crops)))
            parts.append(self._evaluate(crops.gather(indices)))
        persons = persons_in(crops, parts, soft_nms=self._soft_nms)
        for place in np.flatnonzero(persons.kept):
            found[persons.image[place]]["persons"].append(
                {
                    "score": float(persons.scores[place]),
                    "bbox": [float(x) for x in table[persons.crop[place], 1:5]],
                    "joints": [
                        {"name": name, "x": float(x), "y": float(y), "score": float(score)}
                        for name, (x, y), score in zip(
                            self._skeleton.names,
                            persons.joints[place],
                            persons.joint_scores[place],
                            strict=True,
                        )
                    ],
                }
            )
        return found


# --- Both -----------------------------------------------------------------------------------------


def _evaluation(record: Record, net: Net) -> Callable[[dict[str, Any]], dict[str, np.ndarray]]:
    """Return the evaluation of a net's task, of a batch of any number of examples."""
    model, weights, forward = record.load(net)
    task, prepare = net.task(model), net.preprocessing(record.mean, record.std).evaluation

    @jax.jit
    def evaluate(weights: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return task.evaluate(functools.partial(forward, weights), prepare(batch), batch)

    def run(batch: dict[str, Any]) -> dict[str, np.ndarray]:
        count = len(batch["index"])
        filled = {name: jnp.asarray(_filled(values)) for name, values in batch.items()}
        filled["weight"] = (jnp.arange(len(filled["index"])) < count).astype(jnp.float32)
        return jax.device_get(evaluate(weights, filled))

    return run


def _filled(batch: np.ndarray) -> np.ndarray:
    """Repeat the last example until there is a power of two of them: few sizes are compiled."""
    missing = (1 << (len(batch) - 1).bit_length()) - len(batch)
    return np.concatenate([batch, np.repeat(batch[-1:], missing, 0)])


def _size(pixels: np.ndarray) -> dict[str, int]:
    return {"width": pixels.shape[1], "height": pixels.shape[0]}


def _bbox(corners: np.ndarray) -> list[float]:
    """Return left, top, width and height of a box, as COCO has them."""
    left, top, right, bottom = map(float, corners)
    return [left, top, right - left, bottom - top]


def predictor(record: Record, *, top: int) -> Predictor:
    """Return what predicts with a run.

    Args:
      record: of the run.
      top: number of classes to name.

    Raises:
      UserError: the record or the weights are not those of a run of a known task.
    """
    if record.task == "classification":
        return Classifier(record, top)
    if record.task == "detection":
        return BoxFinder(record)
    if record.task == "pose":
        return JointFinder(record)
    raise UserError(f"{record.folder} is a run of {record.task[:60]!r}, which nothing here knows.")
