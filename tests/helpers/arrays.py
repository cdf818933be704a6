"""Arrays that are drawn and compared."""

import jax
import numpy as np


def draw(seed, *shape):
    """Return standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(ours, theirs, tolerance=1e-5):
    """Compare trees of arrays, each to a share of its largest value."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
