"""The expected best of k trials, its noise, and whether coupling fades as k grows."""

import dataclasses
import functools

import numpy as np
import pandas
from scipy import special

from bocb_jax.coupling.noise import estimate_noise
from bocb_jax.coupling.score_table import ScoreTable

# Coupling is a cost of tuning if at least the first share of it disappears with more trials, and a
# ceiling if at most the second does.
MOSTLY, HARDLY = 0.5, 0.2
DRAWS = 400  # of every bootstrap over trials
# Settings tried on two backbones or more make up at least this share of the trials of a grid.
_SHARED = 0.5


@dataclasses.dataclass(frozen=True)
class Fading:
    """How much of the coupling at 1 trial is gone at the largest number of trials in common."""

    share: float | None  # noise subtracted from both; None without coupling at 1 trial
    low: float | None  # of its interval; minus infinity if coupling may be 0 at 1 trial
    high: float | None
    # Of no coupling at 1 trial, and of none at the largest number (one-sided).
    first_p: float
    last_p: float
    outcome: str  # "cost of tuning", "ceiling", "both" or "undecided"


def goodness_of_pairs(table: ScoreTable) -> dict[tuple[str, str], np.ndarray]:
    """Return the trials of every pair (optimizer, backbone) with a finished one, larger is better.

    A trial that diverged is minus infinity: it was spent, and gave nothing. Those that ended for
    another reason without a score (memory, crash) do not count.
    """
    if table.trials is None:
        return {}
    trials = table.trials
    values = (table.sign * trials["score"]).mask(trials["status"] == "diverged", -np.inf)
    counted = trials.assign(score=values).dropna(subset="score")
    pairs = counted.groupby(["optimizer", "backbone"], sort=False)["score"]
    found = {pair: scores.to_numpy(float) for pair, scores in pairs}
    return {pair: scores for pair, scores in found.items() if np.isfinite(scores).any()}


def expected_best(scores: np.ndarray) -> np.ndarray:
    """Return the expected best of k of the recorded trials, drawn without replacement.

    The estimator is unbiased (Tang et al. 2020); drawing with replacement (Dodge et al. 2019)
    underestimates.

    Args:
      scores: (..., n) larger is better; minus infinity for a trial that gave no score.

    Returns:
      (..., n) estimates for k = 1, ..., n: the first is the mean, the last the maximum. Draws in
      which no trial gave a score are left out; NaN if none of all did.
    """
    ordered = np.sort(scores, axis=-1)
    weights = _weights(ordered.shape[-1])
    given = np.isfinite(ordered)
    if given.all():
        return ordered @ weights
    chances = given @ weights
    sums = np.where(given, ordered, 0) @ weights
    return np.divide(sums, chances, out=np.full(sums.shape, np.nan), where=chances > 1e-12)


@functools.cache
def _weights(n: int) -> np.ndarray:
    """Return (n, n): column k - 1 is the probability that the i-th smallest is the best of k."""
    i, k = np.arange(1, n + 1)[:, None], np.arange(1, n + 1)

    def log_binomial(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        known = (bottom >= 0) & (bottom <= top)
        top, bottom = np.where(known, top, 0), np.where(known, bottom, 0)
        logs = special.gammaln(top + 1) - special.gammaln(bottom + 1)
        return np.where(known, logs - special.gammaln(top - bottom + 1), -np.inf)

    return np.exp(log_binomial(i - 1, k - 1) - log_binomial(n + 0 * k, k))


# -- noise of the best of k ------------------------------------------------------------------------


def deviations(
    scores: np.ndarray, noise: float | None, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return (draws, n) deviations of the expected best of k from its mean, as noise makes them.

    Args:
      scores: (n,) trials of a pair.
      noise: standard deviation between seeds of one setting, where the settings are a grid that
        another search would try again; each trial gets noise of that size. None where they are one
        draw of many: trials are drawn with replacement, and the deviations widened to what they
        are for normal scores, because the best of a resample varies too little.
      draws: how many.
      rng: source of the draws.
    """
    n = len(scores)
    if noise is None:
        found = expected_best(scores[rng.integers(n, size=(draws, n))])
        scale = _widening(n)
    else:
        found = expected_best(scores + noise * rng.standard_normal((draws, n)))
        scale = np.ones(n)
    known = np.isfinite(found)
    means = np.where(known, found, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, scale * (found - means), 0)


@functools.cache
def _widening(n: int) -> np.ndarray:
    """Return (n,) the true standard deviation over that of the bootstrap, for normal scores.

    For k = 1 it is sqrt(n / (n - 1)).
    """
    rng = np.random.default_rng(0)
    true = expected_best(rng.standard_normal((20_000, n))).var(axis=0)
    samples, draws = max(200, 20_000 // n), 50
    scores = np.take_along_axis(
        rng.standard_normal((samples, n, 1)), rng.integers(n, size=(samples, n, draws)), axis=1
    )
    resampled = expected_best(scores.swapaxes(1, 2)).var(axis=1, ddof=1).mean(axis=0)
    return np.sqrt(np.maximum(true / np.maximum(resampled, 1e-12), 1))


def noise_of_trials(table: ScoreTable) -> tuple[pandas.Series, float] | None:
    """Return the noise between seeds by backbone, where the settings are a grid.

    It is that of the final runs, on the validation split where it is known; backbones whose noise
    is unknown there take the pooled one.

    Args:
      table: the scores, with trials.

    Returns:
      Standard deviations, and the degrees of freedom behind them all. None without repeated
      seeds that differ, or where most settings were tried on one backbone only.
    """
    if table.trials is None:
        return None
    settings = ["optimizer", "learning_rate", "weight_decay"]
    backbones = pandas.unique(table.trials["backbone"])
    trials = table.trials.dropna(subset="learning_rate")
    spread = trials.groupby(settings, dropna=False)["backbone"].transform("nunique")
    if not len(trials) or (spread > 1).mean() < _SHARED:
        return None
    runs = table.runs[table.runs["score"].notna()]
    if table.score != "train loss" and runs["validation_score"].notna().all():
        table = dataclasses.replace(table, runs=runs.assign(score=runs["validation_score"]))
    if table.one_seed:
        return None
    found = estimate_noise(table)
    known = found[found["own_df"] > 0]
    if known.empty:
        return None
    pooled = np.sqrt(np.average(known["own_sd"] ** 2, weights=known["own_df"]))
    return found["sd"].reindex(backbones).fillna(pooled), float(known["own_df"].sum())


# -- does coupling fade? ---------------------------------------------------------------------------


def center_twice(values: np.ndarray) -> np.ndarray:
    """Return (..., rows, columns) values without their row means and column means."""
    values = values - values.mean(axis=-1, keepdims=True)
    return values - values.mean(axis=-2, keepdims=True)


def fading(
    observed: np.ndarray,
    noise: np.ndarray,
    degrees: float,
    confidence: float,
    rng: np.random.Generator,
) -> Fading:
    """Judge whether coupling fades from 1 trial to more.

    A share counts as a cost of tuning only if the interval excludes a ceiling, and the reverse.

    Args:
      observed: (2, optimizers, backbones) expected best at 1 trial and at the most.
      noise: (draws, 2, optimizers, backbones) its deviations, from `deviations`.
      degrees: of freedom behind the size of that noise, which is estimated itself.
      confidence: of the interval.
      rng: of the draws of that size.
    """
    expected = (center_twice(noise) ** 2).mean(axis=(0, 2, 3))
    size = np.sqrt(degrees / rng.chisquare(degrees, len(noise)))
    noise = noise * size[:, None, None, None]
    drawn = center_twice(noise)
    squares = (center_twice(observed) ** 2).mean(axis=(1, 2))
    floor = 1e-18 * max(float((observed**2).max()), 1e-300)
    first_p, last_p = (
        (1 + ((drawn**2).mean(axis=(2, 3)) >= squares - floor).sum(axis=0)) / (1 + len(drawn))
    ).tolist()
    # The observed squares contain noise, and the draws add it a second time.
    copies = (center_twice(observed + noise) ** 2).mean(axis=(2, 3)) - 2 * expected
    first, last = (squares - expected).clip(min=0)
    shares = _gone(*copies.clip(min=0).T)
    tail = (1 - confidence) / 2
    low, high = np.quantile(shares, [tail, 1 - tail], method="inverted_cdf")
    share = float(1 - np.sqrt(last / first)) if first > 0 else None
    alpha = (1 - confidence) / 2  # one-sided tests
    outcome = "undecided"
    if first_p < alpha and share is not None and share >= MOSTLY and low > HARDLY:
        outcome = "cost of tuning"
    elif last_p < alpha and (share is None or share <= HARDLY) and high < MOSTLY:
        outcome = "ceiling"
    elif max(first_p, last_p) < alpha and low > HARDLY and high < MOSTLY:
        outcome = "both"
    return Fading(share, float(low), float(high), first_p, last_p, outcome)


def _gone(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return 1 - sqrt(last / first); minus infinity where only the first is 0, 0 where both are."""
    ratio = np.divide(last, first, out=np.where(last > 0, np.inf, 1.0), where=first > 0)
    return 1 - np.sqrt(ratio)
