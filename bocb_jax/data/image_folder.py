"""Images in folders: PATH/train/CLASS/*.jpg, with PATH/val and PATH/test beside it."""

import logging
import os

import numpy as np

from bocb_jax.data.records import EncodedSplit
from bocb_jax.data.registry import Dataset, OpenOptions, held_out_fraction, split_indices
from bocb_jax.errors import UserError

logger = logging.getLogger(__name__)

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".jpe", ".jfif", ".jp2", ".avif"),
)
_VALIDATION = ("val", "validation", "valid")


def open_folder(path: str, options: OpenOptions) -> Dataset:
    """The data set in a folder.

    A class is a folder under `train`; its images may lie deeper. Without a `test` folder, `val`
    serves for testing; a validation split that is missing is held out of `train`, class by class.

    Args:
      path: the folder that holds `train`; relative to `options.data_dir` where that is given.
      options: `data_dir`, `split_seed` and `on_corrupt` count.

    Raises:
      UserError: no such folder, no classes, or a class without images.
    """
    path = os.path.expanduser(path)
    path = os.path.abspath(os.path.join(options.data_dir or "", path))
    if not os.path.isdir(path):
        raise UserError(f"There is no folder '{path}' to read images from.")
    folders = {name: os.path.join(path, name) for name in sorted(os.listdir(path))}
    if not os.path.isdir(folders.get("train", "")):
        raise UserError(
            f"The folder '{path}' has no folder 'train'; images are looked for in "
            "train/CLASS/*.jpg, and in val or test likewise."
        )
    classes = _subfolders(folders["train"])
    if not classes:
        raise UserError(f"The folder '{folders['train']}' has no folders in it, one per class.")

    def files(split: str) -> "Files":
        return _list_files(folders[split], classes, complete=split == "train")

    train = files("train")
    given = [name for name in (*_VALIDATION, "test") if os.path.isdir(folders.get(name, ""))]
    splits = {}
    if "test" in given:
        splits["test"] = files("test")
        given.remove("test")
        if given:
            splits["validation"] = files(given[0])
    elif given:
        splits["test"] = files(given[0])
        logger.warning(
            "'%s' has no folder 'test': '%s' serves for testing, and a part of 'train' for "
            "validation.",
            path,
            given[0],
        )
    else:
        logger.warning("'%s' has neither 'val' nor 'test': parts of 'train' serve for both.", path)
    missing = [key for key in ("validation", "test") if key not in splits]
    fraction = held_out_fraction(len(train))
    parts = split_indices(train.labels, [fraction] * len(missing), options.split_seed)
    for key, part in zip(["train", *missing], parts, strict=True):
        splits[key] = Files(train.root, train.names[part], train.labels[part])
    return Dataset(
        name=f"folder:{path}",
        num_classes=len(classes),
        splits={
            key: EncodedSplit(splits[key], on_corrupt=options.on_corrupt)
            for key in ("train", "validation", "test")
        },
        image_shape=None,
        class_names=tuple(classes),
    )


class Files:
    """Image files under one folder, with their labels: the records of an `EncodedSplit`."""

    def __init__(self, root: str, names: np.ndarray, labels: np.ndarray):
        self.root = root
        # Bytes in one array: a million names take little memory and travel fast to workers.
        self.names = names  # (N,) bytes, relative to the root
        self.labels = labels  # (N,) int32

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with open(self.name(index), "rb") as file:
            return file.read(), self.labels[index]

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[index])))


def _subfolders(path: str) -> list[str]:
    return sorted(x.name for x in os.scandir(path) if x.is_dir() and not x.name.startswith("."))


def _list_files(root: str, classes: list[str], *, complete: bool) -> Files:
    strange = sorted(set(_subfolders(root)) - set(classes))
    if strange:
        raise UserError(
            f"The folder '{root}' has a class '{strange[0]}' that the training images do not have."
        )
    names: list[bytes] = []
    counts = []
    for label in classes:
        found = _images_under(root, label)
        if complete and not found:
            raise UserError(
                f"The class folder '{os.path.join(root, label)}' holds no image "
                f"({', '.join(EXTENSIONS[:5])} ...); fill it or remove it."
            )
        names.extend(found)
        counts.append(len(found))
    if not names:
        raise UserError(f"The folder '{root}' holds no images.")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Files(root, np.array(names), labels)


def _images_under(root: str, label: str) -> list[bytes]:
    top = os.path.join(root, label)
    return sorted(
        os.fsencode(os.path.relpath(folder, root) + os.sep + name)
        for folder, _, names in os.walk(top, followlinks=True)
        for name in names
        if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    )
