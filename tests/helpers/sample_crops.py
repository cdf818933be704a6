"""Small images: crops of the two photographs that come with scikit-learn, and noise."""

import functools

import jax
import numpy as np
from sklearn.datasets import load_sample_images


@functools.cache
def photographs() -> np.ndarray:
    """Return both photographs, (2, 427, 640, 3) uint8."""
    return np.stack(load_sample_images().images)


def sample_crops(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Return crops of every third pixel at random positions, (count, side, side, 3) uint8."""
    small = photographs()[:, ::3, ::3]
    random = np.random.RandomState(seed)  # its stream is the same in every version of NumPy
    rows = random.randint(0, small.shape[1] - side + 1, count)
    columns = random.randint(0, small.shape[2] - side + 1, count)
    which = np.arange(count) % 2
    places = zip(which, rows, columns, strict=True)
    return np.stack([small[i, y : y + side, x : x + side] for i, y, x in places])


def noise_images(*shape: int, seed: int = 0) -> np.ndarray:
    """Return uniform noise, uint8."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def uniform_draws(count: int, width: int, seed: int = 0) -> jax.Array:
    """Return the uniform random numbers that augmentation takes, (count, width)."""
    return jax.random.uniform(jax.random.key(seed), (count, width))
