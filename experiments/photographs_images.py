"""Write the photographs of `photographs.toml`: a part of CIFAR-100, by its 20 superclasses.

    python experiments/photographs_images.py cifar-100-binary photographs

Of each of the 100 classes, in the order of the official binary files (`train.bin`, `test.bin` and
the names beside them, from https://www.cs.toronto.edu/~kriz/cifar.html): the first 50 images to
train with, the next 20 to validate, and all 100 of the test split. 17,000 PNGs of 32 pixels.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

IMAGE = (3, 32, 32)  # channels, rows, columns, as stored
ROW = 2 + int(np.prod(IMAGE))  # bytes: superclass, class, pixels
NAMES = ("train.bin", "test.bin", "coarse_label_names.txt", "fine_label_names.txt")
# Of each class: file -> split -> its images.
PARTS = {"train.bin": {"train": range(50), "val": range(50, 70)}, "test.bin": {"test": range(100)}}


def main() -> None:
    """Read the official files, and write an image folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the unpacked folder cifar-100-binary")
    parser.add_argument("out", type=Path, help="the folder to write; it must not exist")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; name a new folder.")
    if missing := [name for name in NAMES if not (arguments.source / name).is_file()]:
        parser.error(f"{arguments.source} lacks {', '.join(missing)}.")
    coarse, fine = (read_names(arguments.source / name) for name in NAMES[2:])
    for file, parts in PARTS.items():
        content = np.fromfile(arguments.source / file, np.uint8)
        if len(content) % ROW:
            parser.error(f"{file} is cut off: {len(content)} bytes are no whole number of images.")
        rows = content.reshape(-1, ROW)
        needed = max(numbers.stop for numbers in parts.values())
        counts = np.bincount(rows[:, 1], minlength=len(fine))
        if len(counts) > len(fine) or rows[:, 0].max(initial=0) >= len(coarse):
            parser.error(f"{file} has labels beyond the {len(fine)} and {len(coarse)} names.")
        if counts.min() < needed:
            least = fine[counts.argmin()]
            parser.error(f"{file} has {counts.min()} images of {least}; {needed} are needed.")
        for label, name in enumerate(fine):
            of_class = rows[rows[:, 1] == label]
            for part, numbers in parts.items():
                for i in numbers:
                    folder = arguments.out / part / coarse[of_class[i, 0]]
                    folder.mkdir(parents=True, exist_ok=True)
                    pixels = of_class[i, 2:].reshape(IMAGE).transpose(1, 2, 0)
                    Image.fromarray(pixels).save(folder / f"{name}_{i:04d}.png")


def read_names(file: Path) -> list[str]:
    """Return the names of a file, one a line."""
    return file.read_text().split()


if __name__ == "__main__":
    main()
