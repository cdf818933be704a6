"""Intervals for a true sum of squares, from the noncentral F and chi-square distributions."""

from collections.abc import Callable

import numpy as np
from scipy import optimize, special, stats

_LARGEST_F = 1e10  # above it the noise is that of rounding
# Above this noncentrality Sankaran's approximation is accurate to 1e-6 and much faster.
_LARGE = 1e4
_NODES = 64  # of the average over the unknown variance


def f_p_value(f: float, numerator: float, denominator: float) -> float:
    """Return the probability of an F at least this large without an effect."""
    return float(stats.f.sf(f, numerator, denominator))


def f_interval(
    f: float, numerator: float, denominator: float, confidence: float
) -> tuple[float, float]:
    """Return an interval for the noncentrality of an F, by inverting it (Steiger 2004).

    Exact for normal noise of equal variance. Divided by the number of runs, a bound is the ratio of
    the effect's mean square over cells to the noise variance. NaN where F is too large for one.
    """
    if f > _LARGEST_F:
        return np.nan, np.nan

    def excess(noncentrality: float, probability: float) -> float:
        return stats.ncf.cdf(f, numerator, denominator, noncentrality) - probability

    return _inverted(excess, numerator * f, numerator, confidence)


def sum_of_squares_interval(
    squares: float, noise: float, degrees: float, noise_degrees: float, confidence: float
) -> tuple[float, float]:
    """Return a generalized interval for the true part of a sum of squares (Weerahandi 1993).

    `squares` / variance is noncentral chi-square, and `noise`, the mean square within cells,
    estimates the variance. An interval that took `noise` for the variance would be too narrow with
    few runs, and `f_interval` gives a ratio instead of points. Here the variance is averaged over
    its fiducial distribution.

    Args:
      squares: observed sum of squares.
      noise: mean square of the noise.
      degrees: of freedom of `squares`.
      noise_degrees: of freedom of `noise`.
      confidence: of the interval.

    Returns:
      Lower and upper bound of the sum of squares without noise, at least 0.
    """
    if not noise > 0:
        return squares, squares
    middles = (np.arange(_NODES) + 0.5) / _NODES
    variances = noise * noise_degrees / stats.chi2.ppf(middles, noise_degrees)

    def excess(true: float, probability: float) -> float:
        return chi_square_cdf(squares / variances, degrees, true / variances).mean() - probability

    return _inverted(excess, squares, degrees * noise, confidence)


def _inverted(
    excess: Callable[[float, float], float], start: float, scale: float, confidence: float
) -> tuple[float, float]:
    """Return the noncentralities at which the cumulative probability equals the two tails.

    Args:
      excess: of (noncentrality, probability): the cumulative probability minus `probability`.
      start, scale: order of magnitude of the noncentrality.
      confidence: 1 minus both tails.
    """
    if not np.isfinite(start):
        return start, start
    tail = (1 - confidence) / 2
    bounds = []
    for probability in (1 - tail, tail):
        if excess(0.0, probability) <= 0:
            bounds.append(0.0)
            continue
        upper = 2 * start + 10 * scale
        while excess(upper, probability) > 0:
            upper *= 2
        bounds.append(float(optimize.brentq(excess, 0.0, upper, (probability,), rtol=1e-8)))
    return bounds[0], bounds[1]


def chi_square_cdf(x: np.ndarray, degrees: float, noncentrality: np.ndarray) -> np.ndarray:
    """Return the cumulative noncentral chi-square of arrays of one shape."""
    large = noncentrality > _LARGE
    exact = special.chndtr(x, degrees, np.where(large, 0.0, noncentrality))
    if not large.any():
        return exact
    # Sankaran (1963): a power of the variable is nearly normal.
    mean = degrees + noncentrality
    spread = degrees + 2 * noncentrality
    power = 1 - 2 * mean * (degrees + 3 * noncentrality) / (3 * spread**2)
    ratio = spread / mean**2
    skew = (power - 1) * (1 - 3 * power)
    center = 1 + power * ratio * (power - 1 - 0.5 * (2 - power) * skew * ratio)
    deviation = power * np.sqrt(2 * ratio) * (1 + 0.5 * skew * ratio)
    return np.where(large, stats.norm.cdf(((x / mean) ** power - center) / deviation), exact)
