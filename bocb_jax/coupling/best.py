"""Which optimizers are shown to be close to the best of a backbone, and which are not.

Simultaneous intervals of every optimizer's regret, from the moderated noise of the backbone: upper
ends by Hsu's constrained comparisons with the best (Edwards and Hsu 1983), lower ends, which say by
how much an optimizer is behind at least, by the studentized range (Hsu 1996, unconstrained).
"""

import functools
from collections.abc import Callable

import numpy as np
import pandas
from scipy import optimize, special, stats

from bocb_jax.coupling.noise import noise_of
from bocb_jax.coupling.score_table import ScoreTable

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
# Normal deviates whose quantiles of the noise stand for its distribution: the tails decide where
# degrees of freedom are few.
_DEVIATES = np.linspace(-8, 8, 257)
_SHARES = stats.norm.pdf(_DEVIATES) / stats.norm.pdf(_DEVIATES).sum()
_LARGEST = 1000.0  # of quantiles; a larger one tells nothing, and counts as infinite


def compare_with_best(
    table: ScoreTable, noise: pandas.DataFrame, *, confidence: float = 0.95
) -> pandas.DataFrame:
    """Return the regret of every cell with simultaneous intervals for each backbone.

    Args:
      table: the scores.
      noise: from `noise.estimate_noise`.
      confidence: that all intervals of one backbone hold.

    Returns:
      A row for each cell with a score: backbone, optimizer, regret, low, high (NaN where the noise
      is unknown), verdict ("within" or "beyond" `table.equal`, or "undecided"), n.
    """
    goodness, counts = table.goodness(), table.counts()
    parts = []
    for backbone in goodness:
        scores = goodness[backbone].dropna()
        if scores.empty:
            continue
        n = counts.loc[scores.index, backbone].to_numpy(float)
        sd, df = noise_of(noise, backbone, scores.index)
        low, high = regret_intervals(scores.to_numpy(), n, sd, df, confidence)
        parts.append(
            pandas.DataFrame(
                {
                    "backbone": backbone,
                    "optimizer": scores.index,
                    "regret": scores.max() - scores.to_numpy(),
                    "low": low,
                    "high": high,
                    "verdict": judge(low, high, table.equal),
                    "n": n.astype(int),
                }
            )
        )
    return pandas.concat(parts, ignore_index=True)


def judge(low: np.ndarray, high: np.ndarray, equal: float) -> np.ndarray:
    """Return "within", "beyond" or "undecided" for intervals of regret; the limit is within."""
    limit = equal + 1e-9
    return np.select([high <= limit, low > limit], ["within", "beyond"], "undecided")


def regret_intervals(
    means: np.ndarray,
    n: np.ndarray,
    sd: np.ndarray | float,
    df: np.ndarray | float,
    confidence: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return intervals of max(mu) - mu that hold together.

    Args:
      means: (k,) of the scores, larger is better.
      n: (k,) runs behind each.
      sd: standard deviation of one run, for all or (k,) for each; equal ones are one estimate.
      df: degrees of freedom of `sd`, likewise.
      confidence: of all intervals together.

    Returns:
      low, high: (k,) each, not below 0; NaN where `sd` is.
    """
    k = len(means)
    sd, df = np.broadcast_to(sd, k), np.broadcast_to(df, k)
    if not (sd >= 0).all():
        return np.full(k, np.nan), np.full(k, np.nan)
    if k == 1:
        return np.zeros(1), np.zeros(1)
    # Half of the error that is allowed goes to each side.
    confidence = (1 + confidence) / 2
    parts = sd**2 / n
    error = np.sqrt(parts[:, None] + parts[None, :])
    pairs = degrees_of_pairs(parts, sd, df)
    behind = means[None, :] - means[:, None]  # [i, j]: how far i is behind j
    others = ~np.eye(k, dtype=bool)
    ranges = _looked_up(functools.partial(range_quantile, confidence, k), pairs) / np.sqrt(2)
    low = np.where(others, behind - ranges * error, -np.inf).max(axis=1)
    dunnett = np.stack(
        [
            _looked_up(functools.partial(dunnett_quantile, confidence, k - 1, correlation=rho), row)
            for rho, row in zip(_correlations(n), pairs, strict=True)
        ]
    )
    least = np.where(others, behind - dunnett * error, -np.inf).max(axis=1)
    may_be_best = others & (least <= 0)
    upper = np.where(may_be_best, behind + dunnett.T * error, -np.inf)
    return low.clip(0), upper.max(axis=1).clip(0)


def degrees_of_pairs(parts: np.ndarray, sd: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Return the degrees of freedom of every difference, by Welch where two estimates meet.

    Whole ones, rounded down, so that quantiles are computed once for many backbones.

    Args:
      parts: (k,) variances of the means.
      sd, df: (k,) of the runs.
    """
    squares = np.where(np.isinf(df), 0, parts**2 / df)
    total = (parts[:, None] + parts[None, :]) ** 2
    below = squares[:, None] + squares[None, :]
    welch = np.where(below > 0, total / np.where(below > 0, below, 1), np.inf)
    shared = (sd[:, None] == sd[None, :]) & (df[:, None] == df[None, :])
    pairs = np.where(shared, np.broadcast_to(df, welch.shape), welch)
    return np.where(pairs > 1, np.floor(pairs), pairs)


def _looked_up(quantile: Callable[[float], float], degrees: np.ndarray) -> np.ndarray:
    """Return a quantile for each of an array of degrees of freedom."""
    distinct, where = np.unique(degrees, return_inverse=True)
    return np.array([quantile(float(d)) for d in distinct])[where].reshape(degrees.shape)


def _correlations(n: np.ndarray) -> list[float]:
    """Return the mean correlation of the differences from each of k optimizers as the control.

    Rounded down, so that few quantiles are computed; less correlation gives a larger one.
    """
    shares = n[:, None] / (n[:, None] + n[None, :])  # squares of Dunnett's lambda
    correlation = (shares.sum(axis=0) - 0.5) / (len(n) - 1)
    return [float(rho) for rho in np.floor(correlation * 20 + 1e-9) / 20]


@functools.lru_cache(maxsize=4096)
def dunnett_quantile(confidence: float, comparisons: int, df: float, correlation: float) -> float:
    """Return the one-sided quantile of Dunnett (1955) for comparisons that share a control.

    Args:
      confidence: probability that no statistic exceeds the quantile.
      comparisons: number of statistics.
      df: degrees of freedom of the noise; may be infinite.
      correlation: between any two statistics; 0.5 where all means have as many runs.

    Returns:
      The quantile; infinite above 1000.
    """
    scales, shares = _scales(df)
    shared = np.sqrt(correlation) * _NODES
    own = np.sqrt(1 - correlation)

    def excess(quantile: float) -> float:
        inside = special.ndtr((quantile * scales[:, None] + shared) / own) ** comparisons
        return float(shares @ inside @ _WEIGHTS) - confidence

    return _root(excess)


@functools.lru_cache(maxsize=4096)
def range_quantile(confidence: float, means: int, df: float) -> float:
    """Return the quantile of the studentized range of several means.

    Args:
      confidence: probability that the range does not exceed the quantile.
      means: their number.
      df: degrees of freedom of the noise; may be infinite.

    Returns:
      The quantile; infinite above 1000.
    """
    scales, shares = _scales(df)
    # Over the largest of the means: all others lie within the range below it.
    largest = np.linspace(-8, 8, 321)
    density = means * stats.norm.pdf(largest) * (largest[1] - largest[0])

    def excess(quantile: float) -> float:
        below = special.ndtr(largest - quantile * scales[:, None])
        inside = (special.ndtr(largest) - below) ** (means - 1)
        return float(shares @ inside @ density) - confidence

    return _root(excess)


def _root(excess: Callable[[float], float]) -> float:
    """Return where an increasing function is 0; infinity where that is above `_LARGEST`."""
    if excess(_LARGEST) < 0:
        return np.inf
    return float(optimize.brentq(excess, 0, _LARGEST, xtol=1e-6))


def _scales(df: float) -> tuple[np.ndarray, np.ndarray]:
    """Return quantiles of the estimated over the true standard deviation, and their shares."""
    if not np.isfinite(df):
        return np.ones(1), np.ones(1)
    return np.sqrt(stats.chi2.ppf(special.ndtr(_DEVIATES), df) / df), _SHARES
