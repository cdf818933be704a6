"""The power law in the tail of a spectrum, by maximum likelihood with a chosen beginning.

The method is that of Clauset, Shalizi and Newman (arXiv 0706.1062): every value but the largest is
tried as the beginning of the tail, the exponent is the most likely one there, and the beginning is
kept whose law lies nearest to the data by Kolmogorov and Smirnov. The details (which side of each
step of the empirical distribution counts, the correction for short spectra) are those of
WeightWatcher 0.7.7, so that its thresholds of 2 and 6 mean the same here.
"""

import dataclasses

import numpy as np

SHORT = 20  # fewer values than this: the exponent is corrected for its bias
SHORTEST_TAIL = 8  # values that a tail of a short spectrum has at least
_PROBES = 48  # points of each tail that are looked at before all of them are
_BLOCK = 1 << 18  # most elements of a temporary array


@dataclasses.dataclass(frozen=True)
class Tail:
    """A power law p(x) ~ x ** -alpha for x >= xmin."""

    alpha: float
    xmin: float  # in the unit of the values
    count: int  # values in the tail
    distance: float  # Kolmogorov-Smirnov distance, in [0, 1]


NO_TAIL = Tail(np.nan, np.nan, 0, np.nan)


def fit_tail(values: np.ndarray) -> Tail:
    """Fits a continuous power law to the tail of some positive values.

    Args:
      values: shape (n,), positive, in any order.

    Returns:
      The fit; `NO_TAIL` for fewer than 8 values, or where no exponent above 1 exists.
    """
    values = np.sort(np.asarray(values, np.float64))
    n = len(values)
    if n < SHORTEST_TAIL or values[0] <= 0 or not np.isfinite(values[-1]):
        return NO_TAIL
    logs = np.log(values)
    counts = np.arange(n, 1, -1)
    excess = np.cumsum(logs[::-1])[::-1][:-1] - counts * logs[:-1]
    short = n < SHORT
    with np.errstate(divide="ignore"):
        alphas = 1 + (counts - short) / excess
    # Equal values leave rounding noise where the excess should be zero.
    usable = (excess > 1e-12 * counts) & np.isfinite(alphas) & (alphas > 1)
    if short:
        usable &= counts >= SHORTEST_TAIL
    starts = np.flatnonzero(usable)
    if not len(starts):
        return NO_TAIL
    start, distance = _nearest(logs, alphas, starts)
    return Tail(float(alphas[start]), float(values[start]), n - int(start), distance)


def _nearest(logs, alphas, starts):
    """The start with the smallest distance, and that.

    A distance is the largest of many gaps, so that over a few points it is never above the one over
    all: most starts are ruled out by some dozens of points each, and the answer stays exact.
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
    for place in order:
        if lower[place] > best:
            break
        start = starts[place]
        distance = _gaps(logs, alphas, start, np.arange(n - start)).max()
        # Among equals the longest tail, as a scan from the left would find it.
        if distance < best or (distance == best and start < answer):
            best, answer = distance, start
    return answer, float(best)


def _gaps(logs, alphas, start, ranks):
    """|law - empirical distribution| at some ranks of the tail that begins at `start`."""
    law = 1 - np.exp((1 - alphas[start]) * (logs[start + ranks] - logs[start]))
    return np.abs(law - ranks / (len(logs) - start))
