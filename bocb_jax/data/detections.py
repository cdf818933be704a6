"""Boxes that a detector found, in COCO's result format, for pose estimation."""

import dataclasses
import os

import numpy as np

from bocb_jax.data.coco import Annotations
from bocb_jax.data.coco_json import is_finite, load_json, short, whole
from bocb_jax.data.listing import shown
from bocb_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """D boxes.

    Attributes:
      image: (D,) int32, the index of each box's image in the annotations.
      corners: (D, 4) float64: left, top, right, bottom in pixels.
      scores: (D,) float64.
    """

    image: np.ndarray
    corners: np.ndarray
    scores: np.ndarray


def read_detections(path: str | os.PathLike[str], annotations: Annotations) -> Detections:
    """Read a detector's boxes of one category, such as COCO_val2017_detections_AP_H_56_person.json.

    Boxes of other categories and of other images are left out, as are those without a size.

    Args:
      path: of a JSON file: a list of objects of image_id, category_id, bbox and score.
      annotations: of the images; of a single category.

    Raises:
      UserError: the file cannot be read, an entry cannot be right, or no box is of use.
    """
    path = os.fspath(path)
    source, entries = shown(path), load_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"The detections '{source}' are no list of objects; COCO's result format is a list of "
            "objects of image_id, category_id, bbox and score."
        )
    place = {int(number): index for index, number in enumerate(annotations.image_ids)}
    [category] = annotations.category_ids.tolist()
    rows = []
    for number, entry in enumerate(entries):
        what = f"detection {number} (from 0)"
        image = whole(entry, "image_id", what, source)
        box, score = entry.get("bbox"), entry.get("score")
        good = isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))
        if not good or not is_finite(score):
            raise UserError(
                f"The {what} in '{source}' has the bbox {short(box)} and the score {short(score)}; "
                "they must be four numbers, [left, top, width, height] in pixels, and one."
            )
        chosen = whole(entry, "category_id", what, source) == category and image in place
        if chosen and box[2] > 0 and box[3] > 0:
            rows.append([place[image], *box, score])
    if not rows:
        raise UserError(
            f"None of the {len(entries):,} detections in '{source}' is of category {category} and "
            f"in an image of '{annotations.source}'; give the boxes of these images."
        )
    table = np.array(rows, np.float64)
    corners = np.concatenate([table[:, 1:3], table[:, 1:3] + table[:, 3:5]], 1)
    return Detections(table[:, 0].astype(np.int32), corners, table[:, 5])
