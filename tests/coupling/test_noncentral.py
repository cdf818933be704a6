"""Distributions against SciPy's."""

import numpy as np
import scipy.stats

from bocb_jax.coupling import noncentral


def test_noncentral_chi_square_agrees_with_scipy():
    for degrees in (1, 19, 361):
        for size in (0.0, 5.0, 2e4, 5e5):
            x = degrees + size + np.linspace(-3, 3, 9) * np.sqrt(2 * degrees + 4 * size)
            x = np.clip(x, 1e-3, None)
            ours = noncentral.chi_square_cdf(x, degrees, np.full(9, size))
            expected = scipy.stats.ncx2.cdf(x, degrees, size)
            np.testing.assert_allclose(ours, expected, atol=2e-6)
