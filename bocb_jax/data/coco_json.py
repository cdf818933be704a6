"""Reading and checking of files in COCO's format (https://cocodataset.org/#format-data).

Whatever cannot be right is refused in a sentence that names the file and the entry. What COCO's own
files hold too (crowds, tiny boxes, persons without joints) is kept for the evaluation, left out of
training by `Annotations.usable` and `Annotations.persons`, and told in notes.
"""

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bocb_jax.data.coco import Annotations
from bocb_jax.data.listing import shown
from bocb_jax.errors import UserError
from bocb_jax.pose.skeleton import Skeleton, skeleton_of

Entry = dict[str, Any]

# Share of a person's box that the person covers, where no area is given; as MMPose takes it.
PERSON_SHARE = 0.53
_MAX_SIDE = 2**16  # pixels; also keeps sizes in int32


def read_coco(path: str | os.PathLike[str], *, joints: bool = False) -> Annotations:
    """Read a file in COCO's format.

    Args:
      path: of the JSON file.
      joints: read the joints of persons; of the categories, only the one with joints is kept.

    Raises:
      UserError: the file cannot be read, or an entry cannot be right; the message says which.
    """
    path = os.fspath(path)
    return annotations_from_json(load_json(path), shown(path), joints=joints)


def annotations_from_json(data: object, source: str, *, joints: bool = False) -> Annotations:
    """Check data in COCO's format and return them as arrays; see `read_coco`.

    Args:
      data: what the JSON holds.
      source: what messages call it.
      joints: as in `read_coco`.
    """
    images, annotations, categories = (
        _entries(data, key, source) for key in ("images", "annotations", "categories")
    )
    image_ids = _ids(images, "image", source)
    sizes = np.array([_size(image, source) for image in images], np.int32)
    file_names = tuple(_file_name(image, source) for image in images)
    _ids(categories, "category", source)
    categories = sorted(categories, key=lambda category: category["id"])
    category_ids = [category["id"] for category in categories]
    names = tuple(_name(category, source) for category in categories)

    place = {number: index for index, number in enumerate(image_ids)}
    label = {number: index for index, number in enumerate(category_ids)}
    _ids(annotations, "annotation", source)
    for annotation in annotations:
        _check_annotation(annotation, place, label, source)
    skeleton = None
    if joints:
        skeleton, kept = _skeleton(categories, source)
        annotations = [a for a in annotations if a["category_id"] == category_ids[kept]]
        label, names = {category_ids[kept]: 0}, (names[kept],)
        category_ids = [category_ids[kept]]
    annotations = sorted(annotations, key=lambda annotation: place[annotation["image_id"]])
    boxes = np.array([_box(annotation, source) for annotation in annotations], np.float64)
    boxes = boxes.reshape(-1, 4)
    triples = None
    if skeleton is not None:
        triples = _triples(annotations, len(skeleton), source)
    areas, measured = _areas(annotations, boxes, skeleton is not None, source)
    found = Annotations(
        source=source,
        image_ids=np.array(image_ids, np.int64),
        file_names=file_names,
        sizes=sizes,
        category_ids=np.array(category_ids, np.int64),
        category_names=names,
        ids=np.array([a["id"] for a in annotations], np.int64),
        image=np.array([place[a["image_id"]] for a in annotations], np.int32),
        labels=np.array([label[a["category_id"]] for a in annotations], np.int32),
        boxes=boxes,
        areas=areas,
        crowd=np.array([_flag(a, "iscrowd", source) for a in annotations], bool),
        ignored=np.array([_flag(a, "ignore", source) for a in annotations], bool),
        joints=None if triples is None else triples[..., :2],
        visible=None if triples is None else triples[..., 2].astype(np.int8),
        skeleton=skeleton,
    )
    return _with_notes(found, len(annotations) - measured)


def load_json(path: str) -> object:
    """Return what a JSON file holds.

    Raises:
      UserError: it cannot be read, or is no JSON.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # some tools put a byte order mark first
            return json.load(file)
    except OSError as error:
        raise UserError(f"The file '{shown(path)}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"The file '{shown(path)}' is not UTF-8; save the JSON as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"The file '{shown(path)}' is no JSON ({str(error)[:200]}); it may be cut off. "
            "Fetch it again."
        ) from error


def _entries(data: object, key: str, source: str) -> list[Entry]:
    """Return one of the lists of a file."""
    entries = data.get(key) if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        what = "has an empty list" if entries == [] else "has no list"
        raise UserError(
            f"'{source}' {what} '{key}'; COCO's format is an object of the lists images, "
            "annotations and categories."
        )
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(
                f"Entry {number} of '{key}' in '{source}' is {short(entry)}; it must be an object."
            )
    return entries


def _ids(entries: Sequence[Entry], what: str, source: str) -> list[int]:
    """Return the ids of entries, which must be different whole numbers."""
    ids = [whole(entry, "id", f"{what} {n} (from 0)", source) for n, entry in enumerate(entries)]
    if len(set(ids)) < len(ids):
        twice = next(number for number, times in Counter(ids).items() if times > 1)
        raise UserError(
            f"The {what} id {twice} is there twice in '{source}'; give each {what} an id of its "
            "own."
        )
    return ids


def whole(entry: Entry, key: str, what: str, source: str) -> int:
    """Return a whole number of an entry.

    Args:
      entry: of a list of the file.
      key: of the number.
      what: what messages call the entry.
      source: what they call the file.

    Raises:
      UserError: it is missing or something else.
    """
    value = entry.get(key)
    if type(value) is int and abs(value) < 2**63:
        return value
    if key not in entry:
        raise UserError(f"The {what} in '{source}' has no '{key}'; it must be a whole number.")
    hint = ""
    if isinstance(value, str):
        hint = "; it is text: write numbers without quotation marks, here and wherever it is named"
    raise UserError(
        f"The '{key}' of the {what} in '{source}' is {short(value)}, not a whole number{hint}."
    )


def _name(category: Entry, source: str) -> str:
    name = category.get("name")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"The category {category['id']} in '{source}' has the name {short(name)}; it must be "
            "text."
        )
    return name


def _file_name(image: Entry, source: str) -> str:
    name = image.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(
            f"The image {image['id']} in '{source}' has the file_name {short(name)}; it must be "
            "the name of its file."
        )
    name = name.replace("\\", "/")  # as tools on Windows write paths
    normal = os.path.normpath(name)
    if os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir:
        raise UserError(
            f"The image {image['id']} in '{source}' has the file_name {short(name)}, which leads "
            "out of the folder of images; give names relative to it."
        )
    return name


def _size(image: Entry, source: str) -> tuple[int, int]:
    what = f"image {image['id']}"
    width, height = (whole(image, key, what, source) for key in ("width", "height"))
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        raise UserError(
            f"The {what} in '{source}' has {width} x {height} pixels; give the size of its file."
        )
    return width, height


def _check_annotation(
    annotation: Entry, images: dict[int, int], categories: dict[int, int], source: str
) -> None:
    """Check that an annotation belongs to an image and a category, and has a box."""
    what = f"annotation {annotation['id']}"
    if whole(annotation, "image_id", what, source) not in images:
        raise UserError(
            f"The {what} in '{source}' belongs to image {annotation['image_id']}, which is not in "
            "its list of images."
        )
    if whole(annotation, "category_id", what, source) not in categories:
        raise UserError(
            f"The {what} in '{source}' is of category {annotation['category_id']}, which is not in "
            f"its list of categories ({_some(sorted(categories))})."
        )
    if "bbox" not in annotation:
        drawn = "a segmentation and no bbox" if annotation.get("segmentation") else "no bbox"
        raise UserError(
            f"The {what} in '{source}' has {drawn}; boxes are needed: give each annotation its "
            "bbox, [left, top, width, height] in pixels."
        )


def _box(annotation: Entry, source: str) -> list[float]:
    box = annotation["bbox"]
    if isinstance(box, list) and len(box) == 4 and all(map(is_finite, box)):
        return box
    raise UserError(
        f"The bbox of annotation {annotation['id']} in '{source}' is {short(box)}; it must be "
        "four numbers, [left, top, width, height] in pixels."
    )


def _flag(annotation: Entry, key: str, source: str) -> bool:
    value = annotation.get(key, 0)
    if isinstance(value, (int, float)) and value in (0, 1):  # true and false as well
        return bool(value)
    raise UserError(
        f"The '{key}' of annotation {annotation['id']} in '{source}' is {short(value)}; it must be "
        "0 or 1, or be left out."
    )


def _areas(
    annotations: Sequence[Entry], boxes: np.ndarray, persons: bool, source: str
) -> tuple[np.ndarray, int]:
    """Return areas (M,) float64, and how many of them the file gives."""
    share = PERSON_SHARE if persons else 1.0
    areas = share * boxes[:, 2] * boxes[:, 3]
    measured = 0
    for index, annotation in enumerate(annotations):
        area = annotation.get("area")
        if area is None:
            continue
        if not is_finite(area):
            raise UserError(
                f"The area of annotation {annotation['id']} in '{source}' is {short(area)}; it "
                "must be a number of pixels, or be left out."
            )
        areas[index] = area
        measured += 1
    return areas, measured


def _skeleton(categories: Sequence[Entry], source: str) -> tuple[Skeleton, int]:
    """Return the joints, and which category has them."""
    having = [i for i, category in enumerate(categories) if category.get("keypoints")]
    if len(having) != 1:
        named = _some([categories[i]["name"] for i in having])
        what = f"{len(having)} categories with keypoints ({named})" if having else "no category"
        raise UserError(
            f"'{source}' has {what} whose 'keypoints' name its joints; poses are estimated of one "
            "category, such as COCO's person_keypoints files have."
        )
    category = categories[having[0]]
    names = category["keypoints"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"The keypoints of category {category['id']} in '{source}' are {short(names)}; they "
            "must be a list of names."
        )
    limbs = category.get("skeleton") or []
    good = isinstance(limbs, list) and all(
        isinstance(limb, list) and len(limb) == 2 and all(type(end) is int for end in limb)
        for limb in limbs
    )
    if not good or not all(1 <= end <= len(names) for limb in limbs for end in limb):
        raise UserError(
            f"The skeleton of category {category['id']} in '{source}' is {short(limbs)}; it must "
            f"be pairs of joints, counted from 1 to {len(names)}."
        )
    return skeleton_of(names, [(first - 1, second - 1) for first, second in limbs]), having[0]


def _triples(annotations: Sequence[Entry], count: int, source: str) -> np.ndarray:
    """Return x, y and visibility of the joints, (M, K, 3) float64."""
    nothing = [0.0] * (3 * count)
    rows = []
    for annotation in annotations:
        row = annotation.get("keypoints", nothing)
        if not isinstance(row, list) or len(row) != 3 * count or not all(map(is_finite, row)):
            raise UserError(
                f"The keypoints of annotation {annotation['id']} in '{source}' are {short(row)}; "
                f"they must be {3 * count} numbers: x, y and visibility of each of {count} joints."
            )
        if not set(row[2::3]) <= {0, 1, 2}:
            raise UserError(
                f"A joint of annotation {annotation['id']} in '{source}' has a visibility beside "
                f"0 (not labelled), 1 (hidden) and 2 (visible): {short(row[2::3])}."
            )
        rows.append(row)
    triples = np.array(rows, np.float64).reshape(-1, count, 3)
    if len(rows) and not triples[..., 2].any():
        raise UserError(
            f"No joint of the {len(rows):,} annotations in '{source}' is labelled: all have "
            "visibility 0. Give labelled joints 1 (hidden) or 2 (visible)."
        )
    return triples


def _with_notes(found: Annotations, unmeasured: int) -> Annotations:
    """Return annotations with sentences on what training leaves out or changes."""
    notes = []
    if crowds := int(found.crowd.sum()):
        notes.append(f"{_count(crowds, 'crowd region')}: for the evaluation alone.")
    if ignored := int(found.ignored.sum()):
        notes.append(f"{_count(ignored, 'annotation')} marked 'ignore': left out of training.")
    inside = (found.clipped[:, 2:] > found.clipped[:, :2]).all(1)
    single = ~found.crowd & ~found.ignored
    empty, outside = single & ~found.usable & inside, single & ~inside
    cut = found.usable & (found.clipped != found.corners).any(1)
    for chosen, says in (
        (empty, "less than a pixel wide or high, or of no area: left out of training"),
        (outside, "of no pixel in the image: left out of training"),
        (cut, "beyond the edge of the image: cut to it in training"),
    ):
        if chosen.any():
            first = int(np.flatnonzero(chosen)[0])
            where = f"annotation {found.ids[first]}, {found.file_names[found.image[first]]}"
            count = _count(int(chosen.sum()), "box", "boxes")
            notes.append(f"{count} {says} (first: {shown(where)}).")
    if found.visible is not None:
        jointless = int((~found.crowd & ~found.visible.any(1)).sum())
        if jointless:
            notes.append(f"{_count(jointless, 'person')} without a labelled joint: left out.")
    if unmeasured:
        rule = f"{PERSON_SHARE} of the box" if found.visible is not None else "the box"
        notes.append(f"{_count(unmeasured, 'annotation')} without an area: taken as {rule}.")
    empty_labels = np.bincount(found.labels, minlength=len(found.category_names)) == 0
    if empty_labels.any():
        names = _some([found.category_names[i] for i in np.flatnonzero(empty_labels)])
        notes.append(f"No annotation of {names}.")
    return dataclasses.replace(found, notes=tuple(notes))


def is_finite(value: object) -> bool:
    """Return whether a value is a number, and neither infinite nor NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # not so for NaN, and for integers beyond any float


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _some(items: Sequence[object], most: int = 5) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(shown(str(item)) for item in items[:most]) + more


def short(value: object) -> str:
    """Return a value as JSON for messages, at most 80 characters."""
    text = json.dumps(value, default=str)
    return shown(text if len(text) <= 80 else text[:77] + "...")
