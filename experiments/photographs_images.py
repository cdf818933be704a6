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

TRAIN, VALIDATION = 50, 20  # images of a class
IMAGE = (3, 32, 32)  # channels, rows, columns, as stored
ROW = 2 + int(np.prod(IMAGE))  # bytes: superclass, class, pixels
NAMES = ("train.bin", "test.bin", "coarse_label_names.txt", "fine_label_names.txt")
PARTS = {"train": range(TRAIN), "val": range(TRAIN, TRAIN + VALIDATION)}


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
    for file, parts in (("train.bin", PARTS), ("test.bin", {"test": None})):
        rows = np.fromfile(arguments.source / file, np.uint8).reshape(-1, ROW)
        for label, name in enumerate(fine):
            of_class = rows[rows[:, 1] == label]
            for part, numbers in parts.items():
                for i in range(len(of_class)) if numbers is None else numbers:
                    folder = arguments.out / part / coarse[of_class[i, 0]]
                    folder.mkdir(parents=True, exist_ok=True)
                    pixels = of_class[i, 2:].reshape(IMAGE).transpose(1, 2, 0)
                    Image.fromarray(pixels).save(folder / f"{name}_{i:04d}.png")


def read_names(file: Path) -> list[str]:
    """Return the names of a file, one a line."""
    return file.read_text().split()


if __name__ == "__main__":
    main()
