"""The data sets of the paper without their images, to plan a study where they are not.

A stand-in has the published numbers of images and classes and is split as the real one is, so that
the numbers of steps are the real ones. Its images are noise; they are read, decoded and cropped in
the same ways, so that a step takes as long.
"""

import functools
import io

import numpy as np
from PIL import Image

from bocb_jax.data.records import EncodedSplit, Subset
from bocb_jax.data.registry import (
    Dataset,
    from_arrays,
    held_out_fraction,
    open_dataset,
    split_indices,
)
from bocb_jax.errors import DatasetMissing

# Images to train on, and of the split that the field tests on.
CIFAR_IMAGES = 50_000, 10_000  # A. Krizhevsky, 2009
IMAGENET_IMAGES = 1_281_167, 50_000  # Russakovsky et al., 2015, arXiv 1409.0575
CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
IMAGENET_CLASSES = 1000
PHOTOGRAPH = 500, 375  # pixels, the most frequent size in ImageNet


def open_or_stand_in(
    name: str, *, split_seed: int = 0, data_dir: str | None = None, on_corrupt: str = "fail"
) -> tuple[Dataset, bool]:
    """A data set, or what stands in for it where it is not on this machine; nothing is fetched.

    Args:
      name: as in `open_dataset`, as for the other arguments.

    Returns:
      The data set, and whether it is the real one.

    Raises:
      UserError: it is not there and its size is not known, or it cannot be used.
    """
    try:
        dataset = open_dataset(
            name,
            split_seed=split_seed,
            data_dir=data_dir,
            on_corrupt=on_corrupt,
            download=False,
        )
    except DatasetMissing:
        short = name.removeprefix("tfds:")
        if short in CIFAR_CLASSES:
            return _cifar(short, split_seed), False
        if short == "imagenet2012":
            return _imagenet(split_seed), False
        raise
    return dataset, True


@functools.lru_cache(maxsize=1)
def _cifar(name: str, split_seed: int) -> Dataset:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    train, test = (
        (np.broadcast_to(noise, (count, *noise.shape)), np.arange(count) % CIFAR_CLASSES[name])
        for count in CIFAR_IMAGES
    )
    return from_arrays(
        name,
        *train,
        test=test,
        held_out=held_out_fraction(CIFAR_IMAGES[0]),
        split_seed=split_seed,
    )


@functools.lru_cache(maxsize=1)
def _imagenet(split_seed: int) -> Dataset:
    train, test = (_OnePhotograph(count) for count in IMAGENET_IMAGES)
    held_out = held_out_fraction(len(train))
    kept, held = split_indices(np.zeros(len(train), int), [held_out], split_seed)
    records = {"train": Subset(train, kept), "validation": Subset(train, held), "test": test}
    splits = {key: EncodedSplit(found) for key, found in records.items()}
    return Dataset("imagenet2012", IMAGENET_CLASSES, splits, image_shape=None)


class _OnePhotograph:
    """The same JPEG under every index: the records of an `EncodedSplit`."""

    def __init__(self, size: int):
        self._size, self._encoded = size, photograph()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self._encoded, index % IMAGENET_CLASSES

    def name(self, index: int) -> str:
        return f"number {index} of a stand-in"


@functools.cache
def photograph() -> bytes:
    """A JPEG as large as ImageNet's in pixels and in bytes: noise with the spectrum of photographs.

    Amplitudes fall as 1 / frequency (Field, 1987). The archive of the training images has 115 kB an
    image, and decoding takes as long as there are coefficients.
    """
    width, height = PHOTOGRAPH
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    white = np.random.default_rng(0).standard_normal((3, height, width))
    pink = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=(height, width))
    grey, colors = pink[:1], pink  # channels of photographs go together
    mixed = grey / grey.std() + 0.3 * colors / colors.std()
    pixels = np.clip(128 + 50 * mixed, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()
