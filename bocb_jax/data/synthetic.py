"""Synthetic data of the published size of CIFAR and ImageNet, for dry runs and benchmarks.

A synthetic data set has as many images and classes as the real one and is split in the same way,
so that a study has as many steps. Its images are noise, but they are read, decoded and cropped as
real ones are, so that a step takes as long.
"""

import functools
import io

import numpy as np
from PIL import Image

from bocb_jax.data.arrays import from_arrays
from bocb_jax.data.dataset import Dataset
from bocb_jax.data.holdout import held_out_fraction, stratified_split
from bocb_jax.data.records import Records, SubsetRecords
from bocb_jax.data.registry import open_dataset
from bocb_jax.data.splits import EncodedSplit
from bocb_jax.errors import DatasetMissing

# Images of the training split, and of the split that is usually tested on.
CIFAR_IMAGES = 50_000, 10_000  # A. Krizhevsky, 2009
IMAGENET_IMAGES = 1_281_167, 50_000  # Russakovsky et al., 2015, arXiv 1409.0575
CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
IMAGENET_CLASSES = 1000
JPEG_SIZE = 500, 375  # width and height in pixels, the most frequent ones in ImageNet


def open_or_synthetic(
    name: str, *, split_seed: int = 0, data_dir: str | None = None, on_corrupt: str = "fail"
) -> tuple[Dataset, bool]:
    """Open a data set, or a synthetic one of its size where it is not on this machine.

    Nothing is downloaded. Arguments are those of `open_dataset`.

    Returns:
      The data set, and whether it is the real one.

    Raises:
      DatasetMissing: it is not on this machine, and its size is not known here.
      UserError: it cannot be used; the message says why.
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
    train, test = (_RepeatedJpeg(count) for count in IMAGENET_IMAGES)
    held_out = held_out_fraction(len(train))
    kept, held = stratified_split(np.zeros(len(train), int), [held_out], split_seed)
    records: dict[str, Records] = {
        "train": SubsetRecords(train, kept),
        "validation": SubsetRecords(train, held),
        "test": test,
    }
    splits = {key: EncodedSplit(found) for key, found in records.items()}
    return Dataset("imagenet2012", IMAGENET_CLASSES, splits, image_shape=None)


class _RepeatedJpeg:
    """Records with the same JPEG under every index."""

    def __init__(self, size: int):
        self._size, self._encoded = size, synthetic_jpeg()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self._encoded, index % IMAGENET_CLASSES

    def name(self, index: int) -> str:
        return f"number {index} of the synthetic data"


@functools.cache
def synthetic_jpeg() -> bytes:
    """Return a JPEG as large as ImageNet's, in pixels and in bytes.

    It is noise with the spectrum of photographs, whose amplitudes fall as 1 / frequency (Field,
    1987), because decoding takes time in proportion to the coefficients. The training images of
    ImageNet have 115 kB each on average.
    """
    width, height = JPEG_SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    white = np.random.default_rng(0).standard_normal((3, height, width))
    pink = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=(height, width))
    gray = pink[:1]  # shared by the channels, which are correlated in photographs
    mixed = gray / gray.std() + 0.3 * pink / pink.std()
    pixels = np.clip(128 + 50 * mixed, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()
