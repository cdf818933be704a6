"""Operations mapped over images, ours beside Pillow's."""

import jax
import numpy as np
from PIL import Image


def factors(count, low, high, seed=0):
    """Return (count,) float32 random numbers."""
    return np.random.default_rng(seed).uniform(low, high, count).astype(np.float32)


def ours(function, images, *values):
    """Map over images one by one, as on a CPU in training."""
    return np.asarray(jax.jit(lambda x: jax.lax.map(lambda x: function(*x), x))((images, *values)))


def theirs(function, images, *values):
    """Map over images by Pillow."""
    pairs = zip(images, *values, strict=True)
    return np.stack([np.asarray(function(Image.fromarray(x), *rest)) for x, *rest in pairs])


def difference(a, b):
    """Return the absolute difference of two uint8 arrays."""
    return np.abs(a.astype(int) - b.astype(int))
