"""Small image folders: PATH/SPLIT/{cat,dog}/*.png."""

from PIL import Image


def write(path, value=0, size=(10, 8)):
    """Write an image file of one value; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def make_folder(root, **splits):
    """Write `count` images of cat and of dog for each split; values count up from 0."""
    for split, count in splits.items():
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                write(root / split / name / f"{i:03}.png", value=2 * i + label)
