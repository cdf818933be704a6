"""ImageNet's ILSVRC 2012 as it is downloaded: a flat folder of validation images, and their labels.

Training images lie in a folder for each WordNet id (wnid), such as n01440764; classes are numbered
by their sorted wnids. The class of a validation image is read from one of these files, beside the
folders of images or where the downloads have it:

* `LOC_val_solution.csv` (Kaggle): image, and boxes that begin with a wnid.
* `ILSVRC2012_validation_ground_truth.txt` (development kit): a class's number per line, in the
  order of the images. Its numbers are not those of the sorted wnids; `meta.mat` beside it says
  which wnid is which number.
* `imagenet_2012_validation_synset_labels.txt`: a wnid per line, in the order of the images.
* `val.txt`: image, and a wnid or the class's number from 0 among the sorted wnids.
"""

import glob
import io
import os
import re
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from bocb_jax.data.listing import Listing, list_images
from bocb_jax.errors import UserError

# Where the archive of Kaggle has the folders `train` and `val`.
INNER_FOLDERS = (os.path.join("ILSVRC", "Data", "CLS-LOC"), os.path.join("Data", "CLS-LOC"))
MAX_LABEL_BYTES = 2**26  # of a file of labels, and of what is unpacked from it
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")

Classes = dict[str, str]  # name of an image without its ending -> wnid, or number


def list_flat(
    path: str, base: str, folder: str, classes: list[str], *, skip_unreadable: bool
) -> tuple[Listing, str]:
    """List validation images that lie in no class folders.

    Args:
      path: the folder of the data set.
      base: the folder that holds `train`.
      folder: the folder of the images.
      classes: the wnid, or another name, of each class.
      skip_unreadable: whether to leave out links that lead nowhere, pipes and the like.

    Returns:
      The images of these classes, sorted by class and name, and a sentence on what was read.

    Raises:
      UserError: no file has their labels, or it does not fit the images.
    """
    top, name = os.path.split(folder)
    listing = list_images(top, [name], skip_unreadable=skip_unreadable)
    images = [os.path.basename(os.fsdecode(bytes(x))) for x in listing.records.names]
    for pattern, read in _READERS.items():
        for place in (*_places(path, base), folder):
            files = sorted(glob.glob(os.path.join(glob.escape(place), pattern)))
            for file in filter(os.path.isfile, files[:1]):
                labels = _labels(file, images, classes, read(file, images))
                left_out = int((labels < 0).sum())
                listing.records.labels = labels
                listing.keep(np.argsort(labels, kind="stable")[left_out:])
                note = f"The labels of the images in '{folder}' are those of '{file}'"
                note += f"; {left_out:,} of other classes are left out." if left_out else "."
                return listing, note
    raise UserError(
        f"The images in '{folder}' have no labels: sort them into class folders, or put ImageNet's "
        f"LOC_val_solution.csv, or its development kit, into '{path}'."
    )


def class_names(path: str, base: str, classes: list[str]) -> tuple[str, ...]:
    """Return the name of each class: its folder's, and the words of `LOC_synset_mapping.txt`."""
    words: dict[str, str] = {}
    for place in _places(path, base):
        file = os.path.join(place, "LOC_synset_mapping.txt")
        if not words and os.path.isfile(file):
            words = dict(line.split(None, 1) for line in _lines(file) if len(line.split()) > 1)
    return tuple(f"{name} {words[name]}" if name in words else name for name in classes)


def _places(path: str, base: str) -> list[str]:
    """Return the folders in which files of labels may lie."""
    places = [base, path]
    if base.endswith(INNER_FOLDERS[1]):
        for _ in range(3):
            base = os.path.dirname(base)
            places.append(base)
    return list(dict.fromkeys(places))


def _labels(file: str, images: list[str], classes: list[str], found: Classes) -> np.ndarray:
    """Return the label of each image, (N,) int32; -1 for classes that are not trained on."""
    of_class = {name: label for label, name in enumerate(classes)}
    values = set(found.values())
    if values and not values & of_class.keys() and all(x.isascii() and x.isdigit() for x in values):
        of_class = {str(label): label for label in range(len(classes))}
        if values != of_class.keys():
            raise UserError(
                f"The file '{file}' does not number its classes from 0 to {len(classes) - 1}, "
                "those of the training images; give the name of the class's folder for each image."
            )
    labels = np.full(len(images), -1, np.int32)
    for index, image in enumerate(images):
        value = found.get(os.path.splitext(image)[0])
        if value is None:
            raise UserError(f"The file '{file}' has no label for the image '{image}'; complete it.")
        labels[index] = of_class.get(value, -1)
    if (labels < 0).all():
        raise UserError(
            f"None of the classes in '{file}' is one of the training images; name their folders by "
            "WordNet id (n01440764)."
        )
    return labels


def _read_solution(file: str, images: list[str]) -> Classes:
    """Read Kaggle's table: `ILSVRC2012_val_00048981,n03995372 85 1 499 272 ...`."""
    del images
    rows = [line.split(",", 1) for line in _lines(file)[1:]]
    return {row[0]: row[1].split()[0] for row in rows if row[1:] and row[1].split()}


def _read_ground_truth(file: str, images: list[str]) -> Classes:
    """Read the development kit's numbers of classes, and `meta.mat` beside them."""
    meta = os.path.join(os.path.dirname(file), "meta.mat")
    if not os.path.isfile(meta):
        raise UserError(
            f"The numbers in '{file}' are not in the order of the classes' names; put the "
            "development kit's meta.mat beside it."
        )
    wnids = _read_meta(meta)
    try:
        return _in_order(file, images, (wnids[int(line)] for line in _lines(file)))
    except (KeyError, ValueError) as error:
        raise UserError(f"The file '{file}' names a class that '{meta}' lacks: {error}.") from error


def _read_meta(file: str) -> dict[int, str]:
    """Return the wnid of each number of a class."""
    import scipy.io

    data = _bytes(file)
    try:
        _check_unpacked_size(data)
        synsets = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True, variable_names=["synsets"])
        synsets = np.atleast_1d(synsets["synsets"])
        return {
            int(number): str(wnid)
            for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        }
    except Exception as error:  # SciPy raises exceptions of many types for broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"The file '{file}' is no meta.mat of ImageNet's development kit ({reason}); unpack "
            "the kit again."
        ) from error


def _check_unpacked_size(data: bytes) -> None:
    """Refuse a MATLAB file whose compressed parts (type 15) unpack to too much."""
    position, left = 128, MAX_LABEL_BYTES
    while position + 8 <= len(data):
        kind, size = np.frombuffer(data, "<u4", 2, position).tolist()
        if kind == 15:
            part = data[position + 8 : position + 8 + size]
            left -= len(zlib.decompressobj().decompress(part, left + 1))
        if left < 0:
            raise ValueError(f"it unpacks to more than {MAX_LABEL_BYTES >> 20} MiB")
        position += 8 + size


def _read_synset_labels(file: str, images: list[str]) -> Classes:
    return _in_order(file, images, _lines(file))


def _read_pairs(file: str, images: list[str]) -> Classes:
    """Read lines of an image and a wnid, or of an image and a number."""
    del images
    pairs = [line.split() for line in _lines(file)]
    if not all(len(pair) == 2 for pair in pairs):
        raise UserError(f"A line of '{file}' is not an image and its class; correct it.")
    return {os.path.splitext(os.path.basename(image))[0]: value for image, value in pairs}


def _in_order(file: str, images: list[str], classes: Iterable[str]) -> Classes:
    """Give each image its class by its number, or by its place where names have no numbers."""
    classes = list(classes)
    numbers = [_NUMBERED.match(image) for image in images]
    if all(numbers):
        at = {
            image: int(match[1]) - 1 for image, match in zip(images, numbers, strict=True) if match
        }
    else:
        at = {image: place for place, image in enumerate(images)}
        if len(classes) != len(images):
            raise UserError(
                f"The file '{file}' has {len(classes):,} lines, for {len(images):,} images; give "
                "one for each."
            )
    return {
        os.path.splitext(image)[0]: classes[place]
        for image, place in at.items()
        if 0 <= place < len(classes)
    }


def _lines(file: str) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        return [line for line in _bytes(file).decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"The file '{file}' is not UTF-8; convert it.") from error


def _bytes(file: str) -> bytes:
    try:
        if os.path.getsize(file) > MAX_LABEL_BYTES:
            raise UserError(
                f"The file '{file}' is larger than {MAX_LABEL_BYTES >> 20} MiB, too much for "
                "labels."
            )
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise UserError(f"The file '{file}' cannot be read ({error.strerror}).") from error


# Where each file of labels lies, relative to a folder of `_places`; the first one found is read.
_READERS: dict[str, Callable[[str, list[str]], Classes]] = {
    "LOC_val_solution.csv": _read_solution,
    "ILSVRC2012_validation_ground_truth.txt": _read_ground_truth,
    os.path.join("data", "ILSVRC2012_validation_ground_truth.txt"): _read_ground_truth,
    os.path.join("*devkit*", "data", "ILSVRC2012_validation_ground_truth.txt"): _read_ground_truth,
    "imagenet_2012_validation_synset_labels.txt": _read_synset_labels,
    "val.txt": _read_pairs,
}
