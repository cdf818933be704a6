"""Weights and images that the golden outputs of the backbones were made with."""

import zlib

import numpy as np


def normal(name, shape, seed):
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode())))
    return generator.standard_normal(shape).astype(np.float32)


def fill(name, shape, seed):
    """Return one tensor of the state dict, by the rule that filled the reference's."""
    z = normal(name, shape, seed)
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        z = 1 + 0.2 * np.abs(z)
    elif last == "running_mean":
        z = 0.1 * z
    elif z.ndim >= 2 and last == "weight":
        z = z / np.sqrt(np.prod(shape[1:]))
    elif last in ("weight", "scale", "gamma", "sigma"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return z.astype(np.float32)
