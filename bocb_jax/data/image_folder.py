"""Image folders: PATH/train/CLASS/*.jpg, with PATH/val and PATH/test beside it."""

import logging
import os

import numpy as np

from bocb_jax.data.dataset import Dataset, OpenOptions
from bocb_jax.data.holdout import held_out_fraction, stratified_split
from bocb_jax.data.splits import EncodedSplit
from bocb_jax.errors import UserError

logger = logging.getLogger(__name__)

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".jpe", ".jfif", ".jp2", ".avif"),
)
_VALIDATION = ("val", "validation", "valid")


def open_folder(path: str, options: OpenOptions) -> Dataset:
    """Open the data set in a folder.

    Each folder in `train` is a class; its images may lie in folders of their own. Without a `test`
    folder, `val` is the test split; a missing validation split is held out of `train`, stratified
    by class.

    Args:
      path: the folder that holds `train`; relative to `options.data_dir` where that is given.
      options: all but `download` apply.

    Raises:
      UserError: there is no such folder, no class, or a class without images.
    """
    path = os.path.expanduser(path)
    path = os.path.abspath(os.path.join(options.data_dir or "", path))
    if not os.path.isdir(path):
        raise UserError(f"There is no folder '{path}'; check the path of the data set.")
    folders = {name: os.path.join(path, name) for name in sorted(os.listdir(path))}
    if not os.path.isdir(folders.get("train", "")):
        raise UserError(
            f"The folder '{path}' has no folder 'train'; put training images in train/CLASS/*.jpg, "
            "and others in val and test likewise."
        )
    classes = _subfolders(folders["train"])
    if not classes:
        raise UserError(f"The folder '{folders['train']}' holds no folders; give it one per class.")

    splits = _list_splits(path, folders, classes)
    missing = [key for key in ("validation", "test") if key not in splits]
    train = splits["train"]
    fraction = held_out_fraction(len(train))
    parts = stratified_split(train.labels, [fraction] * len(missing), options.split_seed)
    for key, part in zip(["train", *missing], parts, strict=True):
        splits[key] = FileRecords(train.root, train.names[part], train.labels[part])
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


class FileRecords:
    """Records of the image files under one folder.

    Args:
      root: the folder.
      names: (N,) bytes, relative to the root. One array rather than a list: a million names take
        little memory and are pickled fast.
      labels: (N,) int32.
    """

    def __init__(self, root: str, names: np.ndarray, labels: np.ndarray):
        self.root, self.names, self.labels = root, names, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with open(self.name(index), "rb") as file:
            return file.read(), self.labels[index]

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[index])))


def _list_splits(path: str, folders: dict[str, str], classes: list[str]) -> dict[str, FileRecords]:
    """Return "train" and those of "validation" and "test" that have folders; warn of the others."""
    splits = {"train": _list_files(folders["train"], classes, complete=True)}
    validation = [name for name in _VALIDATION if os.path.isdir(folders.get(name, ""))]
    if os.path.isdir(folders.get("test", "")):
        splits["test"] = _list_files(folders["test"], classes)
        if validation:
            splits["validation"] = _list_files(folders[validation[0]], classes)
    elif validation:
        splits["test"] = _list_files(folders[validation[0]], classes)
        logger.warning(
            "'%s' has no folder 'test': '%s' is used as the test split, and a part of 'train' for "
            "validation.",
            path,
            validation[0],
        )
    else:
        logger.warning(
            "'%s' has neither 'val' nor 'test': parts of 'train' are held out for both.", path
        )
    return splits


def _subfolders(path: str) -> list[str]:
    return sorted(x.name for x in os.scandir(path) if x.is_dir() and not x.name.startswith("."))


def _list_files(root: str, classes: list[str], *, complete: bool = False) -> FileRecords:
    """List the images of every class; of a `complete` split no class may be empty."""
    unknown = sorted(set(_subfolders(root)) - set(classes))
    if unknown:
        raise UserError(
            f"The folder '{root}' has a class '{unknown[0]}' that the training images do not have; "
            "rename or remove it."
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
        raise UserError(f"The folder '{root}' holds no images; fill it or remove it.")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return FileRecords(root, np.array(names), labels)


def _images_under(root: str, label: str) -> list[bytes]:
    top = os.path.join(root, label)
    return sorted(
        os.fsencode(os.path.relpath(folder, root) + os.sep + name)
        for folder, _, names in os.walk(top, followlinks=True)
        for name in names
        if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    )
