"""The image files in the class folders of a split: regular files, each listed once."""

import dataclasses
import errno
import logging
import os
import stat
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
_NO_INODES = (0, 2**32 - 1)  # what file systems without inode numbers say of every file
# A larger file is no image to train on; it would be read into memory whole.
MAX_FILE_BYTES = 2**29


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
        return read_file(self.path(index)), self.labels[index]

    def name(self, index: int) -> str:
        return shown(self.path(index))

    def path(self, index: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, os.fsdecode(bytes(self.names[index])))

    def subset(self, chosen: np.ndarray) -> "FileRecords":
        """Return the images that are chosen, by a mask or by indices."""
        return FileRecords(self.root, self.names[chosen], self.labels[chosen])


def read_file(path: str) -> bytes:
    """Read a regular file; whatever took its place since it was listed is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if status.st_size > MAX_FILE_BYTES:
            size = status.st_size / 2**20
            raise OSError(errno.EFBIG, f"its {size:,.0f} MiB exceed {MAX_FILE_BYTES >> 20} MiB")
        return file.read()


@dataclasses.dataclass
class Listing:
    """The images of one split.

    Attributes:
      records: sorted by name within each class.
      folders: the real paths of all folders that were read.
      has_links: whether a name is a symbolic link to a file.
      inodes: (N,) uint64, the file number of each name as its folder has it: of the link itself
        where the name is one.
    """

    records: FileRecords
    folders: frozenset[str]
    has_links: bool
    inodes: np.ndarray

    def keep(self, chosen: np.ndarray) -> None:
        """Keep the images that are chosen, by a mask or by indices."""
        self.records, self.inodes = self.records.subset(chosen), self.inodes[chosen]


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
    images = [image for found in walk.found for image in sorted(found)]
    labels = np.repeat(np.arange(len(folders), dtype=np.int32), [len(x) for x in walk.found])
    names = np.array([name for name, _ in images], dtype=np.bytes_)
    inodes = np.array([inode for _, inode in images], dtype=np.uint64)
    return Listing(FileRecords(root, names, labels), frozenset(walk.seen), walk.has_links, inodes)


class _Walk:
    """A walk through the class folders of one split, and what it has found."""

    def __init__(self, root: str, folders: Sequence[str]):
        self.root = os.path.realpath(root)
        self.real = [os.path.realpath(os.path.join(root, folder)) for folder in folders]
        self.seen: set[str] = set()
        self.links: list[tuple[int, str]] = []  # label, path of a link to a folder
        # By label: names relative to the root, and inode numbers.
        self.found: list[list[tuple[bytes, int]]] = [[] for _ in folders]
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
                        name = os.fsencode(within + os.sep + entry.name)
                        self.found[label].append((name, entry.inode()))
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
    """Leave out every image that is listed already, by a second link to its file of either kind.

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
    ends = np.cumsum([len(splits[key].records) for key in order])[:-1]
    inodes = np.concatenate([splits[key].inodes for key in order])
    # To ask for the identity of every file takes long on network drives. It is needed only where
    # there are symbolic links, or where two names have the same inode number, as hard links do.
    if any(split.has_links for split in splits.values()):
        asked = np.ones(len(inodes), bool)
    else:
        asked = _repeated(inodes)
    if not asked.any():
        return
    files = np.concatenate(
        [
            _identities(splits[key].records.subset(part))
            for key, part in zip(order, np.split(asked, ends), strict=True)
        ]
    )
    _, first = np.unique(files, return_index=True)
    once = ~asked
    once[np.flatnonzero(asked)[first]] = True
    for key, kept in zip(order, np.split(once, ends), strict=True):
        if left_out := int((~kept).sum()):
            logger.warning(
                "%d of the %s images, the first of them '%s', are links to files that are listed "
                "already; each file is taken once.",
                left_out,
                key,
                splits[key].records.name(int(np.argmin(kept))),
            )
            splits[key].keep(kept)


def _repeated(inodes: np.ndarray) -> np.ndarray:
    """Return which inode numbers occur twice, (N,) of bool, but for those of no meaning."""
    _, place, counts = np.unique(inodes, return_inverse=True, return_counts=True)
    return (counts[place] > 1) & ~np.isin(inodes, _NO_INODES)


def _identities(records: FileRecords) -> np.ndarray:
    """Return the device and the number of each file, (N,) of two integers."""
    stats = (os.stat(records.path(index)) for index in range(len(records)))
    kind = np.dtype([("device", np.uint64), ("file", np.uint64)])
    return np.array([(found.st_dev, found.st_ino) for found in stats], kind)


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
