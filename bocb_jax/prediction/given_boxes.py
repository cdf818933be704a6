"""Boxes of persons from a file, for a pose net: of `bocb predict`, or in COCO's result format."""

import collections
import os
from collections.abc import Mapping
from typing import Any

from bocb_jax.data.coco_json import is_finite, load_json, short
from bocb_jax.data.listing import shown
from bocb_jax.errors import UserError
from bocb_jax.prediction.predictors import Boxes

_PERSONS = ("person", 1)  # by name, and COCO's number


class GivenBoxes:
    """The boxes of a file, by image.

    The file holds a list. Its entries are those of `bocb predict RUN IMAGE... --json FILE`, an
    object for each image with "image" and "boxes"; or of COCO's result format, an object for each
    box with "image_id", "category_id", "bbox" and "score". Of several categories, persons are taken
    if they are there. Boxes without a size are left out: detectors clip boxes at the border.

    Args:
      path: of the file.
      min_score: boxes of lower scores are left out.

    Raises:
      UserError: the file cannot be read, or an entry cannot be right.
    """

    def __init__(self, path: str, min_score: float):
        self._source = shown(path)
        entries = load_json(path)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"The boxes in '{self._source}' are no list of objects.")
        rows: list[tuple[str, Any]] = []  # image, box
        self._known: set[str] = set()
        for entry in entries:
            if "boxes" in entry or "error" in entry:
                image, found = entry.get("image"), entry.get("boxes") or []
            else:
                image, found = entry.get("image_id"), [entry]
            if not isinstance(image, str | int) or not isinstance(found, list):
                raise UserError(
                    f"'{self._source}' has the entry {short(entry)}; give objects with an image "
                    "and its boxes, or with image_id, bbox and score."
                )
            self._known.add(str(image))
            rows += [(str(image), box) for box in found]
        checked = [(image, self._checked(box)) for image, box in rows]
        has_persons = any(kind in _PERSONS for _, (kind, _) in checked)
        self._boxes: dict[str, list[list[float]]] = {}
        for image, (kind, box) in checked:
            wanted = box[4] >= min_score and min(box[2:4]) > 0
            if wanted and (kind in _PERSONS or not has_persons):
                self._boxes.setdefault(image, []).append(box)
        names = collections.Counter(map(os.path.basename, self._known))
        self._by_name = {
            os.path.basename(image): image
            for image in self._known
            if names[os.path.basename(image)] == 1  # of several, none is known to be meant
        }

    def _checked(self, box: Any) -> tuple[Any, list[float]]:
        """Return the category of a box, and left, top, width, height and score."""
        box = box if isinstance(box, Mapping) else {"bbox": box}
        sides, score = box.get("bbox"), box.get("score", 1.0)
        good = isinstance(sides, list) and len(sides) == 4 and all(map(is_finite, sides))
        if not good or not is_finite(score) or min(sides[2:]) < 0:
            raise UserError(
                f"'{self._source}' has the bbox {short(sides)} and the score {short(score)}; they "
                "must be four numbers, [left, top, width, height] in pixels with sizes of at least "
                "0, and one."
            )
        return box.get("category", box.get("category_id")), [float(x) for x in (*sides, score)]

    def of(self, path: str) -> Boxes:
        """Return the boxes of an image file: by its path, its name, or COCO's number in it.

        Raises:
          UserError: the file knows no such image.
        """
        name = os.path.basename(path)
        stem = os.path.splitext(name)[0]
        number = str(int(stem)) if stem.isascii() and stem.isdecimal() else stem
        for candidate in (path, self._by_name.get(name), number):
            if candidate in self._known:
                return self._boxes.get(str(candidate), [])
        raise UserError(f"There are no boxes for the image '{shown(path)}' in '{self._source}'.")
