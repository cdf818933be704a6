"""Small folders in COCO's format: a good one, and what can be wrong with one."""

import copy
import json
from io import BytesIO

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
NAMES = ("head", "left_hand", "right_hand")


def image_bytes(width=WIDTH, height=HEIGHT, orientation=1):
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG", **({"exif": exif} if orientation > 1 else {}))
    return file.getvalue()


def annotation(number, image=1, **fields):
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [4.0, 6.0, 20.0, 30.0],
        "area": 400.0,
        "iscrowd": 0,
        "keypoints": [10, 8, 2, 6, 20, 1, 0, 0, 0],
        "num_keypoints": 2,
    } | fields


def good():
    """One file: two images with three annotations of the first of two categories."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)
        ],
        "annotations": [annotation(1), annotation(2), annotation(3, 2)],
        "categories": [
            {"id": 1, "name": "person", "keypoints": list(NAMES), "skeleton": [[1, 2], [1, 3]]},
            {"id": 7, "name": "dog"},
        ],
    }


def changed(change):
    """The good file after a change, made in place."""
    data = copy.deepcopy(good())
    change(data)
    return data


def of_first(**fields):
    """A file whose first annotation has other fields; None removes one."""

    def change(data):
        first = data["annotations"][0]
        first |= fields
        for name in [name for name, value in fields.items() if value is None]:
            del first[name]

    return changed(change)


def of(kind, **fields):
    """A file of which the first image or category has other fields; None removes one."""

    def change(data):
        data[kind][0] |= fields
        for name in [name for name, value in fields.items() if value is None]:
            del data[kind][0][name]

    return changed(change)


def without(kind):
    return changed(lambda data: data.pop(kind))


def hidden(data):
    for each in data["annotations"]:
        each["keypoints"] = [0] * 9


def twice(kind):
    return changed(lambda data: data[kind].append(dict(data[kind][0])))


# id -> (what the JSON holds, what the sentence says). All are refused for either task, but those
# that begin with "pose", which are refused for that one.
BAD_JSON = {
    "no-object": ([1, 2], "has no list 'images'; COCO's format is an object of the lists"),
    "no-images": (without("images"), "has no list 'images'"),
    "empty-images": (changed(lambda data: data["images"].clear()), "has an empty list 'images'"),
    "no-annotations": (without("annotations"), "has no list 'annotations'"),
    "no-categories": (without("categories"), "has no list 'categories'"),
    "image-no-object": (
        changed(lambda data: data["images"].append(3)),
        "Entry 2 of 'images' in .* is 3; it must be an object",
    ),
    "image-id-text": (
        of("images", id="1"),
        r"The 'id' of the image 0 \(from 0\) in .* is \"1\", not a whole number; it is text: write "
        "numbers without quotation marks",
    ),
    "image-id-float": (of("images", id=1.0), "is 1.0, not a whole number"),
    "image-id-missing": (of("images", id=None), r"image 0 \(from 0\) in .* has no 'id'"),
    "image-id-twice": (twice("images"), "The image id 1 is there twice"),
    "annotation-id-text": (of_first(id="x"), "The 'id' of the annotation 0 .* it is text"),
    "annotation-id-missing": (of_first(id=None), "annotation 0 .* has no 'id'"),
    "annotation-id-twice": (twice("annotations"), "The annotation id 1 is there twice"),
    "category-id-text": (of("categories", id="1"), "The 'id' of the category 0 .* it is text"),
    "category-id-bool": (of("categories", id=True), "is true, not a whole number"),
    "category-id-twice": (twice("categories"), "The category id 1 is there twice"),
    "category-without-name": (of("categories", name=None), "category 1 in .* has the name null"),
    "image-id-of-box-text": (of_first(image_id="1"), "'image_id' of the annotation 1 .* is text"),
    "image-not-there": (of_first(image_id=9), "annotation 1 .* belongs to image 9, which is not"),
    "category-not-there": (
        of_first(category_id=2),
        r"annotation 1 .* is of category 2, which is not in its list of categories \(1, 7\)",
    ),
    "no-width": (of("images", width=None), "The image 1 in .* has no 'width'"),
    "width-zero": (of("images", width=0), "The image 1 in .* has 0 x 48 pixels"),
    "width-huge": (of("images", width=2**40), "has 1099511627776 x 48 pixels"),
    "width-float": (of("images", width=64.5), "'width' of the image 1 .* is 64.5, not a whole"),
    "file-name-missing": (of("images", file_name=None), "image 1 .* has the file_name null"),
    "file-name-leads-out": (
        of("images", file_name="../../etc/passwd"),
        "which leads out of the folder of images",
    ),
    "file-name-leads-out-of-windows": (
        of("images", file_name="..\\..\\etc\\passwd"),
        "which leads out of the folder of images",
    ),
    "file-name-absolute": (of("images", file_name="/etc/passwd"), "leads out of the folder"),
    "segmentation-only": (
        of_first(bbox=None, segmentation=[[1, 1, 9, 1, 9, 9]]),
        "annotation 1 .* has a segmentation and no bbox; boxes are needed",
    ),
    "no-box": (of_first(bbox=None), "annotation 1 .* has no bbox"),
    "box-of-three": (of_first(bbox=[1, 2, 3]), r"bbox of annotation 1 .* is \[1, 2, 3\]; it must"),
    "box-of-text": (of_first(bbox=["1", 2, 3, 4]), "it must be four numbers"),
    "box-not-finite": (of_first(bbox=[1, 2, float("nan"), 4]), "it must be four numbers"),
    "box-beyond-floats": (of_first(bbox=[1, 2, 10**400, 4]), "it must be four numbers"),
    "crowd-text": (of_first(iscrowd="0"), "'iscrowd' of annotation 1 .* is \"0\"; it must be 0"),
    "area-text": (of_first(area="large"), "The area of annotation 1 .* is \"large\"; it must be"),
    "pose-all-invisible": (
        changed(hidden),
        "No joint of the 3 annotations in .* is labelled: all have visibility 0",
    ),
    "pose-no-joints": (of("categories", keypoints=None), "has no category whose 'keypoints' name"),
    "pose-two-kinds": (
        changed(lambda data: data["categories"][1].update(keypoints=["nose"])),
        r"has 2 categories with keypoints \(person, dog\)",
    ),
    "pose-names-no-text": (of("categories", keypoints=[1, 2, 3]), "must be a list of names"),
    "pose-skeleton-from-0": (
        of("categories", skeleton=[[0, 1]]),
        r"skeleton of category 1 .* is \[\[0, 1\]\]; it must be pairs .* from 1 to 3",
    ),
    "pose-too-few": (of_first(keypoints=[1, 2, 2]), "annotation 1 .* they must be 9 numbers"),
    "pose-visibility": (
        of_first(keypoints=[1, 2, 3, 1, 1, 1, 0, 0, 0]),
        r"has a visibility beside 0 .* \[3, 1, 0\]",
    ),
}  # fmt: skip


def write(folder, train=None, val=None, images=("1.png", "2.png"), encoded=None):
    """Write a data set; what is not given is good."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for name, data in (("train", train), ("val", val)):
        text = data if isinstance(data, (str, bytes)) else json.dumps(data or good())
        for kind in ("instances", "person_keypoints"):
            path = folder / "annotations" / f"{kind}_{name}.json"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "images").mkdir(exist_ok=True)
    for name in images:
        (folder / "images" / name).write_bytes(encoded or image_bytes())
    return folder
