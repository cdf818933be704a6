"""Folders in COCO's layout, and those that other tools write: which file describes which images."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bocb_jax.data.coco import Annotations
from bocb_jax.data.coco_json import read_coco
from bocb_jax.data.decode import decode
from bocb_jax.data.exif import orientation, turned
from bocb_jax.data.listing import read_file, shown
from bocb_jax.errors import UserError

TASKS = ("detection", "pose")
_SPLITS = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
_YEARS = ("2017", "2014", "")
# Of the annotations of a split, by task; {} is the name of the split with or without its year.
_FILES = {
    "detection": (
        "annotations/instances_{}.json",
        "annotations/{}.json",
        "{}/_annotations.coco.json",  # Roboflow
        "{}.json",
    ),
    "pose": (
        "annotations/person_keypoints_{}.json",
        "annotations/{}.json",
        "{}/_annotations.coco.json",
        "{}.json",
    ),
}
_FOLDERS = ("{}", "images/{}", "{}/images", "images", "")


@dataclasses.dataclass(frozen=True)
class CocoSplit:
    """The images of one split with their annotations.

    Attributes:
      annotations: what is in the images.
      folder: that holds them.
    """

    annotations: Annotations
    folder: str

    def __len__(self) -> int:
        return len(self.annotations)

    def read(self, index: int) -> np.ndarray:
        """Return an image, (H, W, 3) uint8.

        It is turned upright as its EXIF orientation says, as in MMDetection and detectron2: the
        tools that draw boxes show it so. Where only the size of the file as it is stored is that of
        the annotations, it is not turned.

        Raises:
          UserError: the file cannot be decoded, or has another size than the annotations say.
        """
        name = self.annotations.file_names[index]
        path = os.path.join(self.folder, name)
        try:
            encoded = read_file(path)
            stored = decode(encoded)
        except Exception as error:  # decoders raise exceptions of many types for broken files
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UserError(
                f"The image '{shown(path)}' cannot be decoded ({reason}). Replace it, or remove it "
                "from the annotations."
            ) from error
        width, height = self.annotations.sizes[index]
        for pixels in (turned(stored, orientation(encoded)), stored):
            if pixels.shape[:2] == (height, width):
                return np.ascontiguousarray(pixels)
        is_turned = stored.shape[:2] == (width, height)
        hint = "; its boxes may be those of the picture turned upright" if is_turned else ""
        raise UserError(
            f"The image '{shown(path)}' has {stored.shape[1]} x {stored.shape[0]} pixels, but "
            f"{width} x {height} in '{self.annotations.source}'{hint}. Make both agree: boxes "
            "are in pixels of the file."
        )


def open_coco(path: str | os.PathLike[str], task: str) -> dict[str, CocoSplit]:
    """Open a folder in COCO's format.

    The annotations of "train", "val" (or "valid") and "test" are looked for in
    `annotations/instances_train2017.json` or `person_keypoints_train2017.json`, without the year or
    of 2014, `annotations/train.json`, `train/_annotations.coco.json` and `train.json`; the images
    in `train2017`, `images/train2017`, `images` and the folder itself.

    Args:
      path: of the folder.
      task: "detection" or "pose".

    Returns:
      "train", and "validation" or "test" or both.

    Raises:
      UserError: a file is missing or cannot be right; the message says what.
    """
    if task not in TASKS:
        raise UserError(f"The task is 'detection' or 'pose', not '{task}'.")
    path = os.path.abspath(os.path.expanduser(os.fspath(path)))
    if not os.path.isdir(path):
        what = "is a file; unpack it" if os.path.exists(path) else "is not there"
        raise UserError(f"The folder '{shown(path)}' {what}; give the folder of the data set.")
    splits = {}
    for split in _SPLITS:
        found = _annotations(path, split, task)
        if found is not None:
            name, file = found
            annotations = read_coco(file, joints=task == "pose")
            splits[split] = CocoSplit(
                annotations, _image_folder(path, [name, *_names(split)], annotations)
            )
    if "train" not in splits or len(splits) == 1:
        missing = "validation" if "train" in splits else "training"
        looked_for = " or ".join(
            pattern.format("val" if "train" in splits else "train") for pattern in _FILES[task]
        )
        raise UserError(
            f"'{shown(path)}' has no {missing} annotations for {task}: {looked_for}, the first "
            "also with a year as in COCO's own."
        )
    _check_categories({split: each.annotations for split, each in splits.items()})
    return splits


def _annotations(path: str, split: str, task: str) -> tuple[str, str] | None:
    """Return the name of a split with its year, and the path of its annotations, if there are."""
    for pattern in _FILES[task]:
        for name in _names(split):
            file = os.path.join(path, pattern.format(name))
            if os.path.isfile(file):
                return name, file
    return None


def _names(split: str) -> Iterator[str]:
    for name in _SPLITS[split]:
        for year in _YEARS:
            yield name + year


def _image_folder(path: str, names: Sequence[str], annotations: Annotations) -> str:
    """Return the folder that holds all images of some annotations.

    Args:
      path: of the data set.
      names: of the split, the likeliest first.
      annotations: which name the images.

    Raises:
      UserError: images are missing.
    """
    first = annotations.file_names[0]
    tried = [pattern.format(name) for pattern in _FOLDERS for name in names]
    folders = [os.path.normpath(os.path.join(path, each)) for each in dict.fromkeys(tried)]
    existing = [folder for folder in folders if os.path.isdir(folder)]
    folder = next((f for f in existing if os.path.isfile(os.path.join(f, first))), None)
    # Where the first is missing, the folder that has any is the one to complain about.
    folder = folder or next(
        (f for f in existing if any(map(_present(f).__contains__, annotations.file_names))), None
    )
    if folder is None:
        raise UserError(
            f"None of the {len(annotations):,} images of '{annotations.source}' is there; the "
            f"first, '{shown(first)}', was looked for in {', '.join(map(shown, existing))}."
        )
    there = _present(folder)
    missing = [name for name in annotations.file_names if os.path.normpath(name) not in there]
    # Folders behind links are not walked through.
    missing = [name for name in missing if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise UserError(
            f"{len(missing):,} of the {len(annotations):,} images of '{annotations.source}' are "
            f"not in '{shown(folder)}', the first of them '{shown(missing[0])}'. Fetch them, or "
            "remove them from the annotations."
        )
    return folder


def _present(folder: str) -> set[str]:
    """Return the files below a folder, by their path in it."""
    return {
        os.path.normpath(os.path.join(os.path.relpath(root, folder), name))
        for root, _, names in os.walk(folder)
        for name in names
    }


def _check_categories(splits: Mapping[str, Annotations]) -> None:
    """Check that all splits have the categories of the training split."""
    train = splits["train"]
    for annotations in splits.values():
        same_ids = np.array_equal(annotations.category_ids, train.category_ids)
        if not same_ids or annotations.category_names != train.category_names:
            theirs, ours = (
                dict(zip(each.category_ids.tolist(), each.category_names, strict=True))
                for each in (annotations, train)
            )
            wrong = next(i for i in theirs | ours if theirs.get(i) != ours.get(i))
            raise UserError(
                f"Category {wrong} is {theirs.get(wrong, 'missing')!r} in '{annotations.source}' "
                f"and {ours.get(wrong, 'missing')!r} in '{train.source}'; all files must have the "
                "same categories."
            )
        if annotations.skeleton != train.skeleton:
            raise UserError(
                f"'{annotations.source}' has other joints than '{train.source}'; all files must "
                "have the same keypoints."
            )
