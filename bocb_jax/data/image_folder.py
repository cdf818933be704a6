"""Image folders: PATH/train/CLASS/*.jpg, with PATH/val and PATH/test beside it."""

import logging
import os
import unicodedata
from collections.abc import Sequence

import numpy as np

from bocb_jax.data import imagenet
from bocb_jax.data.dataset import Dataset, OpenOptions
from bocb_jax.data.holdout import held_out_fraction, stratified_split
from bocb_jax.data.listing import (
    EXTENSIONS,
    FileRecords,
    Listing,
    images_in,
    list_images,
    shown,
    subfolders,
    take_each_image_once,
)
from bocb_jax.data.splits import EncodedSplit
from bocb_jax.errors import UserError

logger = logging.getLogger(__name__)

_TRAIN = ("train", "ILSVRC2012_img_train")
_VALIDATION = ("val", "validation", "valid", "ILSVRC2012_img_val")


def open_folder(path: str, options: OpenOptions) -> Dataset:
    """Open the data set in a folder.

    Each folder in `train` is a class; classes are numbered by their sorted names, as in
    torchvision's ImageFolder. Images may lie in folders of their own within a class. Without a
    `test` folder, `val` is the test split; a missing validation split is held out of `train`,
    stratified by class. ImageNet is read as it is downloaded, see `bocb_jax.data.imagenet`.

    Args:
      path: the folder that holds `train`; relative to `options.data_dir` where that is given.
      options: all but `download` apply.

    Raises:
      UserError: there is no such folder, fewer than two classes, or a class without images.
    """
    path = os.path.expanduser(path)
    path = os.path.abspath(os.path.join(options.data_dir or "", path))
    if not os.path.isdir(path):
        if os.path.exists(path):
            raise UserError(f"'{path}' is a file; unpack it, and give the folder that holds train.")
        raise UserError(f"There is no folder '{path}'; check the path of the data set.")
    base, folders = _split_folders(path)
    classes = subfolders(folders["train"])
    _check_classes(folders["train"], classes)
    skip = options.on_corrupt == "skip"
    listings = {"train": _list_classes(folders["train"], classes, skip, complete=True)}
    order = "Classes are numbered by the sorted names of their folders, as in torchvision: "
    notes = [order + _ends([f"{label} = {name}" for label, name in enumerate(classes)]) + "."]
    listings |= _list_held_out(path, base, folders, classes, skip, notes)
    take_each_image_once(listings)
    splits = {key: listing.records for key, listing in listings.items()}
    for key, split in splits.items():
        if not len(split):
            raise UserError(f"No {key} image in '{path}' is left; give it images of its own.")
    if (label := _empty_class(splits["train"], len(classes))) is not None:
        raise UserError(
            f"No training image of the class '{classes[label]}' in '{path}' is left; give it "
            "images of its own."
        )

    missing = [key for key in ("validation", "test") if key not in splits]
    train = splits["train"]
    fraction = held_out_fraction(len(train))
    parts = stratified_split(train.labels, [fraction] * len(missing), options.split_seed)
    for key, part in zip(["train", *missing], parts, strict=True):
        splits[key] = train.subset(part)
    return Dataset(
        name=f"folder:{path}",
        num_classes=len(classes),
        splits={
            key: EncodedSplit(splits[key], on_corrupt=options.on_corrupt)
            for key in ("train", "validation", "test")
        },
        image_shape=None,
        class_names=imagenet.class_names(path, base, classes),
        notes=tuple(notes),
    )


def _split_folders(path: str) -> tuple[str, dict[str, str]]:
    """Return the folder that holds the splits, and those of "train", "validation" and "test"."""
    for inner in ("", *imagenet.INNER_FOLDERS):
        base = os.path.join(path, inner) if inner else path
        found = {
            key: next((x for x in names if os.path.isdir(os.path.join(base, x))), None)
            for key, names in (("train", _TRAIN), ("validation", _VALIDATION), ("test", ("test",)))
        }
        if found["train"]:
            return base, {key: os.path.join(base, x) for key, x in found.items() if x}
    raise UserError(
        f"The folder '{path}' has no folder 'train'; put training images in train/CLASS/*.jpg, "
        "and others in val and test likewise."
    )


def _check_classes(train: str, classes: list[str]) -> None:
    if not classes:
        hint = ""
        if any(name.endswith(".tar") for name in os.listdir(train)):
            hint = "; unpack each CLASS.tar into a folder CLASS"
        raise UserError(f"The folder '{train}' holds no folders; give it one per class{hint}.")
    if len(classes) == 1:
        raise UserError(
            f"The folder '{train}' holds one class only, '{classes[0]}': a classifier of one class "
            "is always right. Give it a folder for each of at least two classes."
        )


def _list_held_out(
    path: str, base: str, folders: dict[str, str], classes: list[str], skip: bool, notes: list[str]
) -> dict[str, Listing]:
    """Return "validation" and "test" where there are folders; say where other images are used."""
    found: dict[str, Listing] = {}
    validation, test = folders.get("validation"), folders.get("test")
    if validation and _is_flat(validation):
        found["validation"], note = imagenet.list_flat(
            path, base, validation, classes, skip_unreadable=skip
        )
        notes.append(note)
        if test and _is_flat(test):
            notes.append("The images in 'test' have no labels and are not used.")
            test = None
    elif validation:
        found["validation"] = _list_classes(validation, classes, skip)
    if test:
        if _is_flat(test):
            raise UserError(
                f"The images in '{test}' have no labels; sort them into class folders, or move the "
                "folder away: without it 'val', or a part of 'train', is the test split."
            )
        found["test"] = _list_classes(test, classes, skip)
    elif validation:
        found["test"] = found.pop("validation")
        logger.warning(
            "'%s' has no folder 'test': '%s' is used as the test split, and a part of 'train' for "
            "validation.",
            base,
            os.path.basename(validation),
        )
    else:
        logger.warning(
            "'%s' has neither 'val' nor 'test': parts of 'train' are held out for both.", path
        )
    return found


def _is_flat(folder: str) -> bool:
    """Return whether images lie in a folder itself, and none in class folders."""
    return not subfolders(folder) and bool(images_in(folder))


def _list_classes(root: str, classes: list[str], skip: bool, *, complete: bool = False) -> Listing:
    """List the images of every class; of a `complete` split no class may be empty."""
    # macOS decomposes accents in file names, and a copy to another system keeps them so.
    here = _by_composed_name(root, subfolders(root))
    known = _by_composed_name(root, classes)
    unknown = sorted(here.keys() - known.keys())
    if unknown:
        raise UserError(
            f"The folder '{root}' has a class '{unknown[0]}' that the training images do not have; "
            "rename or remove it."
        )
    found = list_images(root, [here.get(name, "") for name in known], skip_unreadable=skip)
    if complete and (label := _empty_class(found.records, len(classes))) is not None:
        folder = os.path.join(root, classes[label])
        raise UserError(
            f"The class folder '{folder}' holds no image ({', '.join(EXTENSIONS[:5])} ...)"
            f"{_other_endings(folder)}; fill it or remove it."
        )
    if not len(found.records):
        raise UserError(f"The folder '{root}' holds no images; fill it or remove it.")
    return found


def _empty_class(records: FileRecords, num_classes: int) -> int | None:
    """Return the first class without an image, if there is one."""
    empty = np.flatnonzero(np.bincount(records.labels, minlength=num_classes) == 0)
    return int(empty[0]) if len(empty) else None


def _by_composed_name(root: str, names: list[str]) -> dict[str, str]:
    composed: dict[str, str] = {}
    for name in names:
        other = composed.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise UserError(
                f"Two folders in '{root}' are named '{name}', once with composed and once with "
                "decomposed accents; merge them."
            )
    return composed


def _other_endings(folder: str) -> str:
    endings = {os.path.splitext(name)[1] for name in os.listdir(folder)} - {""}
    return f"; its files end in {_ends(sorted(map(shown, endings)))}" if endings else ""


def _ends(items: Sequence[str]) -> str:
    """Return a list of words, without those in its middle if it is long."""
    return ", ".join(items if len(items) <= 5 else [*items[:3], "...", items[-1]])
