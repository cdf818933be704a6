"""The power law in the tail of a spectrum, fitted by maximum likelihood.

The method of Clauset, Shalizi and Newman (arXiv 0706.1062): every value but the largest is tried
as the start of the tail, with the most likely exponent from there on, and the start whose power
law is nearest to the data in Kolmogorov-Smirnov distance is kept. The details (which side of each
step of the empirical distribution counts, the correction for short spectra) are WeightWatcher
0.7.7's, so that its thresholds of 2 and 6 mean the same here.
"""

import dataclasses

import numpy as np

SHORT_SPECTRUM = 20  # values; with fewer, the exponent is corrected for bias
MIN_TAIL = 8  # values in the tail of a short spectrum
_PROBES = 48  # points of each tail that bound its distance before all points are compared
_BLOCK = 1 << 18  # most elements of a temporary array


@dataclasses.dataclass(frozen=True)
class Tail:
    """A power law p(x) ~ x ** -alpha for x >= xmin."""

    alpha: float
    xmin: float  # in the unit of the values
    count: int  # number of values in the tail
    distance: float  # Kolmogorov-Smirnov distance, in [0, 1]


NO_TAIL = Tail(np.nan, np.nan, 0, np.nan)


def fit_tail(values: np.ndarray) -> Tail:
    """Fit a continuous power law to the tail of positive values.

    Args:
      values: shape (n,), positive, in any order.

    Returns:
      The fit; `NO_TAIL` for fewer than MIN_TAIL values, or if no exponent above 1 exists.
    """
    values = np.sort(np.asarray(values, np.float64))
    n = len(values)
    if n < MIN_TAIL or values[0] <= 0 or not np.isfinite(values[-1]):
        return NO_TAIL
    logs = np.log(values)
    counts = np.arange(n, 1, -1)
    excess = np.cumsum(logs[::-1])[::-1][:-1] - counts * logs[:-1]
    short = n < SHORT_SPECTRUM
    with np.errstate(divide="ignore"):
        alphas = 1 + (counts - short) / excess
    # Rounding leaves equal values a small excess where it should be zero.
    usable = (excess > 1e-12 * counts) & np.isfinite(alphas) & (alphas > 1)
    if short:
        usable &= counts >= MIN_TAIL
    starts = np.flatnonzero(usable)
    if not len(starts):
        return NO_TAIL
    start, distance = _nearest(logs, alphas, starts)
    return Tail(float(alphas[start]), float(values[start]), n - start, distance)


def _nearest(logs: np.ndarray, alphas: np.ndarray, starts: np.ndarray) -> tuple[int, float]:
    """Return the start with the smallest distance, and that distance.

    The distance is a maximum over all points of the tail, so its maximum over a few points is a
    lower bound. The bound rules out most starts, and the answer stays exact.

    Args:
      logs: shape (n,), logarithms of the ascending values.
      alphas: shape (n - 1,), the exponent for each start.
      starts: shape (m,), indices of the starts to compare.
    """
    n = len(logs)
    lower = np.empty(len(starts))
    shares = (np.arange(_PROBES) + 0.5) / _PROBES
    rows = max(1, _BLOCK // _PROBES)
    for begin in range(0, len(starts), rows):
        part = starts[begin : begin + rows, None]
        ranks = (shares * (n - part)).astype(np.intp)
        lower[begin : begin + rows] = _gaps(logs, alphas, part, ranks).max(axis=1)
    best, answer = np.inf, -1
    order = np.argsort(lower, kind="stable")
    for index in order:
        if lower[index] > best:
            break
        start = starts[index]
        distance = _gaps(logs, alphas, start, np.arange(n - start)).max()
        # Among equals the longest tail, as a scan from the smallest value would find it.
        if distance < best or (distance == best and start < answer):
            best, answer = distance, start
    return int(answer), float(best)


def _gaps(
    logs: np.ndarray, alphas: np.ndarray, start: np.ndarray | int, ranks: np.ndarray
) -> np.ndarray:
    """Return |power law - empirical distribution| at some ranks of the tail from `start`."""
    law = 1 - np.exp((1 - alphas[start]) * (logs[start + ranks] - logs[start]))
    return np.abs(law - ranks / (len(logs) - start))
