"""Pictures of a few validation images during training: the truth beside what a net finds."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from bocb_jax.data.annotated import Images
from bocb_jax.data.persons import PersonCrops
from bocb_jax.pictures import Canvas, in_rows
from bocb_jax.tasks.pose import persons_in

Parts: TypeAlias = Sequence[dict[str, Any]]

SHOWN = 4  # images
_SIDE = 384  # pixels of each
_BOX_SCORE = 0.3  # of the boxes that are drawn, at least
_JOINT_SCORE = 0.2  # of the joints
_TITLES = ("truth", "prediction")


def box_picture(images: Images, parts: Parts) -> Image.Image:
    """Return a picture of the boxes of some images.

    Args:
      images: of the split.
      parts: what `BoxTask.evaluate` returned for its batches.
    """
    known, names = images.annotations, images.annotations.category_names
    chosen = _spread(np.unique(known.image[~known.crowd]))
    found = _of(parts, chosen, lambda index: index)
    rows = []
    for number in chosen:
        pixels = images.read(int(number))
        truth, prediction = Canvas(pixels, _SIDE), Canvas(pixels, _SIDE)
        for i in range(known.starts[number], known.starts[number + 1]):
            if not known.crowd[i]:
                truth.box(known.corners[i], names[known.labels[i]], known.labels[i])
        for place in np.flatnonzero(found["index"] == number):
            real = (found["labels"][place] >= 0) & (found["scores"][place] >= _BOX_SCORE)
            for i in np.flatnonzero(real)[::-1]:  # the best on top
                label, score = found["labels"][place, i], found["scores"][place, i]
                text = f"{names[label]} {score:.0%}"
                prediction.box(found["boxes"][place, i], text, label)
        rows.append((truth.image, prediction.image))
    return in_rows(rows, _TITLES)


def joint_picture(images: Images, crops: PersonCrops, parts: Parts) -> Image.Image:
    """Return a picture of the joints in some images.

    Args:
      images: of the split.
      crops: of the persons in them.
      parts: what `JointTask.evaluate` returned for its batches.
    """
    known, limbs = images.annotations, crops.skeleton.limbs
    assert known.joints is not None
    assert known.visible is not None
    chosen = _spread(np.unique(crops.image))
    found = persons_in(crops, [_of(parts, chosen, lambda index: crops.image[index])])
    rows = []
    for number in chosen:
        pixels = images.read(int(number))
        truth, prediction = Canvas(pixels, _SIDE), Canvas(pixels, _SIDE)
        for color, i in enumerate(known.persons[known.image[known.persons] == number]):
            truth.person(known.joints[i], known.visible[i] > 0, limbs, color)
        for color, i in enumerate(np.flatnonzero((found.image == number) & found.kept)):
            prediction.person(found.joints[i], found.joint_scores[i] >= _JOINT_SCORE, limbs, color)
        rows.append((truth.image, prediction.image))
    return in_rows(rows, _TITLES)


def _spread(images: np.ndarray) -> np.ndarray:
    """Return at most `SHOWN` of some images, spread over them, and always the same."""
    count = min(SHOWN, len(images))
    return images[np.linspace(0, len(images) - 1, count).round().astype(int)]


def _of(parts: Parts, chosen: np.ndarray, image_of: Any) -> dict[str, np.ndarray]:
    """Return the rows of an evaluation that belong to the chosen images."""
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = (found["weight"] > 0) & np.isin(image_of(found["index"]), chosen)
    return {name: values[rows] for name, values in found.items()}
