"""The image files in the class folders of a split: regular files, each listed once."""

import dataclasses
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from bocb_jax.errors import UserError

logger = logging.getLogger(__name__)

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".jpe", ".jfif", ".jp2", ".avif"),
)
# What operating systems, archivers and network drives leave in folders; in lower case.
_SYSTEM_NAMES = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "lost+found"),
        *("$recycle.bin", "recycler", "system volume information", "__pycache__"),
    )
)


@dataclasses.dataclass
class Listing:
    """The images of one split.

    Attributes:
      root: the folder of the split.
      names: (N,) bytes, relative to the root, sorted within each class.
      labels: (N,) int32.
      folders: the real paths of all folders that were read.
      has_links: whether a name is a symbolic link to a file.
    """

    root: str
    names: np.ndarray
    labels: np.ndarray
    folders: frozenset[str]
    has_links: bool

    def keep(self, chosen: np.ndarray) -> None:
        """Keep the images that are chosen, by a mask or by indices."""
        self.names, self.labels = self.names[chosen], self.labels[chosen]

    def path(self, index: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, os.fsdecode(bytes(self.names[index])))


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is taken for an image."""
    return name.lower().endswith(EXTENSIONS) and not _is_hidden(name)


def shown(path: str) -> str:
    """Return a path for messages: control characters, and bytes that are no UTF-8, are escaped."""
    return "".join(
        repr(character)[1:-1] if unicodedata.category(character) in ("Cc", "Cs") else character
        for character in path
    )


def subfolders(path: str) -> list[str]:
    """Return the names of the visible folders in a folder, sorted by code point.

    Raises:
      UserError: the folder cannot be read, or a name cannot be shown.
    """
    names = sorted(entry.name for entry in _entries(path) if _is_folder(entry))
    for name in names:
        if shown(name) != name:
            raise UserError(
                f"The folder '{shown(name)}' in '{path}' has a control character in its name, or "
                "one that is not UTF-8; rename it."
            )
    return names


def list_images(root: str, folders: Sequence[str], *, skip_unreadable: bool) -> Listing:
    """List the images in the class folders of a split.

    Folders in a class folder count for that class. Hidden folders, and those that systems leave
    behind, are not read. Every real folder is read once: links to folders are followed after all
    real folders, and only where they lead to one that was not read yet.

    Args:
      root: the folder of the split.
      folders: the name of each class's folder; "" for a class that has none here.
      skip_unreadable: whether to leave out links that lead nowhere, pipes and the like.

    Raises:
      UserError: a folder cannot be read, two classes share a folder, or an image is no file.
    """
    walk = _Walk(root, folders)
    for label, folder in enumerate(folders):
        if folder:
            walk.read(label, os.path.join(root, folder), walk.real[label])
    walk.follow_links()
    if walk.strange:
        count, first = len(walk.strange), shown(min(walk.strange))
        if not skip_unreadable:
            raise UserError(
                f"The image '{first}' is no regular file, or a link that leads nowhere ({count:,} "
                f"such in '{root}'). Remove or replace it, or pass --on-corrupt skip."
            )
        logger.warning(
            "%d images in '%s' are no regular files, or links that lead nowhere; they are skipped. "
            "The first is '%s'.",
            count,
            root,
            first,
        )
    names = [sorted(found) for found in walk.found]
    return Listing(
        root,
        np.array([name for found in names for name in found], dtype=np.bytes_),
        np.repeat(np.arange(len(folders), dtype=np.int32), [len(found) for found in names]),
        frozenset(walk.seen),
        walk.has_links,
    )


class _Walk:
    """A walk through the class folders of one split, and what it has found."""

    def __init__(self, root: str, folders: Sequence[str]):
        self.root = os.path.realpath(root)
        self.real = [os.path.realpath(os.path.join(root, folder)) for folder in folders]
        self.seen: set[str] = set()
        self.links: list[tuple[int, str]] = []  # label, path of a link to a folder
        self.found: list[list[bytes]] = [[] for _ in folders]  # by label
        self.strange: list[str] = []  # named as images, but no files
        self.has_links = False
        self._top, self._tops = root, set(self.real)
        owner: dict[str, str] = {}
        for folder, real in zip(folders, self.real, strict=True):
            if folder and owner.setdefault(real, folder) != folder:
                raise UserError(
                    f"The class folders '{owner[real]}' and '{folder}' in '{root}' are one and the "
                    "same; remove the link."
                )

    def read(self, label: int, folder: str, real: str) -> None:
        """Read a folder and the real folders in it; note down the links to others."""
        unread = [(folder, real)]
        while unread:
            folder, real = unread.pop()
            self.seen.add(real)
            within = os.path.relpath(folder, self._top)
            for entry in _entries(folder):
                if _is_folder(entry):
                    inner = os.path.join(real, entry.name)
                    if entry.is_symlink():
                        self.links.append((label, entry.path))
                    elif inner not in self.seen and inner not in self._tops:
                        unread.append((entry.path, inner))
                elif is_image_name(entry.name):
                    if _is_regular(entry):
                        self.has_links |= entry.is_symlink()
                        self.found[label].append(os.fsencode(within + os.sep + entry.name))
                    else:
                        self.strange.append(entry.path)

    def follow_links(self) -> None:
        """Read the folders that links lead to, unless they were read or hold the split itself."""
        while self.links:
            links, self.links = sorted(self.links), []
            for label, link in links:
                real = os.path.realpath(link)
                if real not in self.seen and os.path.commonpath([real, self.root]) != real:
                    self.read(label, link, real)


def images_in(folder: str) -> list[str]:
    """Return the names of the images that lie in a folder itself, sorted."""
    return sorted(
        entry.name for entry in _entries(folder) if is_image_name(entry.name) and _is_regular(entry)
    )


def take_each_image_once(splits: dict[str, Listing]) -> None:
    """Leave out every image that is listed already, for example by a second link to its file.

    An image of several splits stays in the test split, or else in the validation split, so that
    nothing is trained on that is tested on.

    Args:
      splits: the listings of "train", and of "validation" and "test" where there are such.

    Raises:
      UserError: two splits share a folder.
    """
    order = [key for key in ("test", "validation", "train") if key in splits]
    for place, key in enumerate(order):
        for other in order[:place]:
            if shared := splits[key].folders & splits[other].folders:
                raise UserError(
                    f"The folder '{min(shared)}' belongs to both the {key} and the {other} images; "
                    "a link leads from one to the other. Remove it."
                )
    # Without links, no file is listed twice, since no folder is read twice.
    if not any(split.has_links for split in splits.values()):
        return
    files = np.concatenate([_identities(splits[key]) for key in order])
    _, first = np.unique(files, return_index=True)
    once = np.zeros(len(files), bool)
    once[first] = True
    sizes = [len(splits[key].names) for key in order]
    for key, kept in zip(order, np.split(once, np.cumsum(sizes)[:-1]), strict=True):
        if left_out := int((~kept).sum()):
            logger.warning(
                "%d of the %s images, the first of them '%s', are links to files that are listed "
                "already; each file is taken once.",
                left_out,
                key,
                shown(splits[key].path(int(np.argmin(kept)))),
            )
            splits[key].keep(kept)


def _identities(listing: Listing) -> np.ndarray:
    """Return the device and the number of each file, (N,) of two integers."""
    stats = (os.stat(listing.path(index)) for index in range(len(listing.names)))
    kind = np.dtype([("device", np.uint64), ("file", np.uint64)])
    return np.array([(stat.st_dev, stat.st_ino) for stat in stats], kind)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Return what is visible in a folder."""
    try:
        with os.scandir(folder) as entries:
            return iter([entry for entry in entries if not _is_hidden(entry.name)])
    except OSError as error:
        raise UserError(
            f"The folder '{folder}' cannot be read ({error.strerror}); change its permissions, or "
            "remove it."
        ) from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
