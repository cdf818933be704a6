"""What the choice of the optimizer costs on each backbone: freedom, stakes, reliability, price.

Regret is the best score of a backbone minus that of an optimizer. An optimizer that ran and never
finished has no score; where costs are added up it costs what `costs.with_failures` says.
"""

import numpy as np
import pandas
from scipy import stats

from bocb_jax.coupling.best import degrees_of_pairs, dunnett_quantile, judge, regret_intervals
from bocb_jax.coupling.costs import (
    LEAST_BACKBONES,
    costs_of,
    diverged,
    far_behind,
    general_advice,
    with_failures,
)
from bocb_jax.coupling.noise import noise_of
from bocb_jax.coupling.score_table import ScoreTable, regret_of

SHOWN = 2 / 3  # share of the optimizers that "free" and "bound" must be shown for
MOST_SEEDS = 30  # per cell; what more seeds would show is not asked
# A cell without a finished run is shown to fail if a share of two thirds that finish is excluded.
_FINISHING = 2 / 3
_PRICE_CONFIDENCE = 0.9
_MOST_NUMBERS = 2**22  # that the draws of a table may hold


def reliability(table: ScoreTable, *, confidence: float = 0.95) -> pandas.DataFrame:
    """Return how many runs finish in every cell, with Wilson's (1927) interval of the share.

    Runs that ended for lack of memory or by a crash do not count: they say nothing about the
    optimizer.

    Returns:
      backbone, optimizer, runs, finished, share, low, high; a row for each cell with such runs.
    """
    counted = table.runs[table.runs["status"].isin(("finished", "diverged", "not_reached"))]
    finished = counted.assign(finished=counted["status"] == "finished")
    groups = finished.groupby(["backbone", "optimizer"], sort=False)["finished"]
    frame = groups.agg(runs="size", finished="sum").reset_index()
    frame["share"] = frame["finished"] / frame["runs"]
    frame["low"], frame["high"] = wilson(
        frame["finished"].to_numpy(float), frame["runs"].to_numpy(float), confidence
    )
    return frame


def wilson(
    successes: np.ndarray, trials: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's score interval of a share."""
    z = stats.norm.ppf((1 + confidence) / 2)
    center = (successes + z**2 / 2) / (trials + z**2)
    half = z / (trials + z**2) * np.sqrt(successes * (1 - successes / trials) + z**2 / 4)
    share = successes / trials  # no end may cross it by rounding
    return (center - half).clip(0, share), (center + half).clip(share, 1)


# -- freedom ---------------------------------------------------------------------------------------


def freedom(
    table: ScoreTable,
    best: pandas.DataFrame,
    noise: pandas.DataFrame,
    equal: float | None = None,
    *,
    confidence: float = 0.95,
) -> pandas.DataFrame:
    """Return which share of the optimizers is as good as the best, for every backbone.

    Args:
      table: the scores.
      best: from `best.compare_with_best`.
      noise: from `noise.estimate_noise`.
      equal: distance to the best that counts as equal; by default `table.equal`.
      confidence: of what is said to be shown.

    Returns:
      Index backbone: n (optimizers that finished or diverged), freedom (share within `equal`),
      shown_within and shown_beyond (shares for which that is shown), word, and seeds: the number
      per cell that would decide a word, if means and noise stayed what they are, NaN where
      `MOST_SEEDS` would not. The word is "free" (at least two thirds shown within), "bound" (two
      thirds shown beyond), "mixed" (more than a third shown within and more than a third beyond, so
      it is neither), "undecided", or None where the noise is unknown or there are fewer than three
      optimizers.
    """
    equal = table.equal if equal is None else equal
    failed = diverged(table)
    lost = _shown_to_fail(table, confidence)
    goodness, counts = table.goodness(), table.counts()
    known_cells = dict(iter(best.groupby("backbone", sort=False)))
    rows = {}
    for backbone in table.backbones:
        cells = known_cells.get(backbone, best.iloc[:0])
        number = len(cells) + int(failed[backbone].sum())
        if number == 0:
            continue
        low, high = cells["low"].to_numpy(), cells["high"].to_numpy()
        verdicts = judge(low, high, equal)
        within = (verdicts == "within").sum() / number
        beyond = ((verdicts == "beyond").sum() + lost[backbone]) / number
        known = number >= 3 and bool(np.isfinite(high).all()) and len(cells) > 0
        word = _word(within, beyond) if known else None
        seeds = np.nan
        if word == "undecided":
            scores = goodness[backbone].dropna()
            n = counts.loc[scores.index, backbone].to_numpy(float)
            words = (equal, confidence, number, lost[backbone])
            seeds = _deciding_seeds(scores, n, noise, *words)
        rows[backbone] = {
            "n": number,
            "freedom": (cells["regret"] <= equal + 1e-9).sum() / number,
            "shown_within": within if known else np.nan,
            "shown_beyond": beyond if known else np.nan,
            "word": word,
            "seeds": seeds,
        }
    frame = pandas.DataFrame.from_dict(rows, orient="index").reindex(table.backbones)
    frame["word"] = frame["word"].astype(object).where(frame["word"].notna(), None)
    return frame.rename_axis("backbone")


def _word(within: float, beyond: float) -> str:
    if within >= SHOWN - 1e-9:
        return "free"
    if beyond >= SHOWN - 1e-9:
        return "bound"
    # More than a third beyond excludes "free", more than a third within excludes "bound".
    if min(within, beyond) > 1 - SHOWN + 1e-9:
        return "mixed"
    return "undecided"


def _shown_to_fail(table: ScoreTable, confidence: float) -> pandas.Series:
    """Return the number of optimizers of each backbone that are shown to diverge mostly.

    By the exact bound of Clopper and Pearson (1934); Wilson's is too low where no run finished.
    """
    found = reliability(table, confidence=confidence)
    bound = 1 - ((1 - confidence) / 2) ** (1 / found["runs"])
    found = found[(found["finished"] == 0) & (bound < _FINISHING)]
    return found.groupby("backbone").size().reindex(table.backbones).fillna(0).astype(int)


def _deciding_seeds(
    scores: pandas.Series,
    counts: np.ndarray,
    noise: pandas.DataFrame,
    equal: float,
    confidence: float,
    number: int,
    lost: int,
) -> float:
    """Return the least number of runs per cell that would give a backbone a word.

    Args:
      scores: means of the optimizers, larger is better; the name is the backbone.
      counts: runs behind each.
      noise, equal, confidence: as for `freedom`.
      number: of optimizers that finished or diverged.
      lost: how many of them are shown to fail.
    """
    backbone = str(scores.name)
    sd, degrees = noise_of(noise, backbone, scores.index)

    def decided(seeds: int) -> bool:
        n = np.maximum(counts, seeds)
        more = n - counts  # runs of each cell; those of cells with the same noise are pooled
        df = degrees + np.where(sd == noise.at[backbone, "sd"], more.sum(), more)
        ends = regret_intervals(scores.to_numpy(), n, sd, df, confidence)
        verdicts = judge(*ends, equal)
        within = (verdicts == "within").sum() / number
        beyond = ((verdicts == "beyond").sum() + lost) / number
        return _word(within, beyond) != "undecided"

    if not decided(MOST_SEEDS):
        return np.nan
    low, high = int(counts.min()), MOST_SEEDS  # undecided, decided
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return float(high)


def freedom_curve(table: ScoreTable) -> pandas.DataFrame:
    """Return the share of the optimizers that are within any distance of the best.

    Returns:
      Index: every regret of the table in ascending order; a column for each backbone with a score.
    """
    regret, failed = regret_of(table.goodness()), diverged(table)
    distances = np.unique(regret.to_numpy()[regret.notna().to_numpy()])
    curves = {
        backbone: np.searchsorted(np.sort(column.dropna()), distances + 1e-9, side="right")
        / (column.notna() | failed[backbone]).sum()
        for backbone, column in regret.items()
        if column.notna().any()
    }
    return pandas.DataFrame(curves, index=pandas.Index(distances, name="distance"))


# -- stakes ----------------------------------------------------------------------------------------


def stakes(table: ScoreTable) -> pandas.DataFrame:
    """Return what a wrong choice costs on every backbone.

    Returns:
      Index backbone: median, q90 and largest regret (of optimizers with a score), worst (the
      optimizer with the largest), beyond (optimizers that are `costs.far_behind`,
      the worst first) and failed (those whose runs diverged), both tuples.
    """
    regret, failed = regret_of(table.goodness()), diverged(table)
    rows = {}
    for backbone in table.backbones:
        column = regret[backbone].dropna().sort_values(ascending=False, kind="stable")
        far = column.index[far_behind(column, table.equal)]
        rows[backbone] = {
            "median": column.median(),
            "q90": column.quantile(0.9),
            "largest": column.max(),
            "worst": column.index[0] if len(column) > 1 else None,
            "beyond": tuple(far),
            "failed": tuple(failed.index[failed[backbone]]),
        }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("backbone")


# -- price of general advice -----------------------------------------------------------------------


def price(
    table: ScoreTable,
    families: pandas.Series,
    noise: pandas.DataFrame,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pandas.DataFrame:
    """Return what it costs on a backbone to use the optimizer that is best on all others.

    General advice for a backbone is the optimizer with the lowest mean regret on backbones of
    other families; its price is its regret on this one.

    Args:
      table: the scores.
      families: of every backbone.
      noise: from `noise.estimate_noise`.
      resamples: draws of the seeds' noise, each of which chooses the general advice anew.
      seed: of the draws.

    Returns:
      Index backbone: general (the optimizer), price, price_low, price_high (90 percent; NaN where
      the noise is not known, or an optimizer that may be the advice has no score there), fails
      (whether it diverged there, in which case the price is that of a failure), families (number
      behind the advice). Empty for fewer than `LEAST_BACKBONES`.
    """
    columns = ["general", "price", "price_low", "price_high", "fails", "families"]
    costs = costs_of(table)
    told = costs.notna().sum() >= 2
    if told.sum() < LEAST_BACKBONES:
        return pandas.DataFrame(columns=columns).rename_axis("backbone")
    groups = families.reindex(costs.columns).where(told)
    usual = general_advice(costs.to_numpy()[None], groups)[0]
    drawn = _drawn_costs(table, noise, resamples, seed)
    chosen = None if drawn is None else general_advice(drawn, groups)
    failed = diverged(table)
    goodness, counts = table.goodness(), table.counts()
    rows = {}
    for column, backbone in enumerate(costs.columns):
        if not told[backbone] or usual[column] < 0:
            continue
        name = costs.index[usual[column]]
        low, high = np.nan, np.nan
        if chosen is not None:
            scores = goodness[backbone].dropna()
            n = counts.loc[scores.index, backbone].to_numpy(float)
            candidates = _candidates(costs.index, chosen[:, column])
            low, high = _price_interval(scores, n, noise, candidates)
        rows[backbone] = {
            "general": name,
            "price": costs.at[name, backbone],
            "price_low": low,
            "price_high": high,
            "fails": bool(failed.at[name, backbone]),
            "families": groups[groups != groups[backbone]].nunique(),
        }
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("backbone")


def _drawn_costs(
    table: ScoreTable, noise: pandas.DataFrame, resamples: int, seed: int
) -> np.ndarray | None:
    """Return (draws, optimizers, backbones) costs of means with other noise; None if not known."""
    goodness, counts = table.goodness().to_numpy(), table.counts().to_numpy()
    sd = np.stack([noise_of(noise, b, table.optimizers)[0] for b in table.backbones], axis=1)
    if np.isnan(sd).any():
        return None
    draws = max(1, min(resamples, _MOST_NUMBERS // goodness.size))
    normal = np.random.default_rng(seed).standard_normal((draws, *goodness.shape))
    drawn = goodness + normal * sd / np.sqrt(np.maximum(counts, 1))
    regret = np.where(np.isnan(drawn), -np.inf, drawn).max(axis=1, keepdims=True) - drawn
    return with_failures(regret, diverged(table).to_numpy(), table.equal)


def _candidates(optimizers: pandas.Index, chosen: np.ndarray) -> list[str]:
    """Return the optimizers that nine tenths of the draws chose."""
    rows, shares = np.unique(chosen[chosen >= 0], return_counts=True)
    order = np.argsort(-shares)
    most = np.searchsorted(np.cumsum(shares[order]), _PRICE_CONFIDENCE * len(chosen)) + 1
    return [str(optimizers[row]) for row in rows[order][:most]]


def _price_interval(
    scores: pandas.Series, n: np.ndarray, noise: pandas.DataFrame, candidates: list[str]
) -> tuple[float, float]:
    """Return the interval of the regret of whatever may be the general advice.

    The noise of this backbone has no part in the choice of the advice, so each candidate's regret
    has an interval of its own: below by Dunnett's quantile, since the best is not known, above by
    Student's. NaN where one of the candidates has no score, because an interval of the others would
    not be that of the price.

    Args:
      scores: means of the optimizers, larger is better; the name is the backbone.
      n: runs behind each.
      noise: from `noise.estimate_noise`.
      candidates: optimizers that may be the advice.
    """
    sd, df = noise_of(noise, str(scores.name), scores.index)
    parts, level = sd**2 / n, (1 + _PRICE_CONFIDENCE) / 2
    pairs = degrees_of_pairs(parts, sd, df)
    ends = []
    for name in candidates:
        if name not in scores.index or len(scores) < 2:
            return np.nan, np.nan
        at = scores.index.get_loc(name)
        behind = np.delete(scores.to_numpy() - scores[name], at)
        error = np.sqrt(parts[at] + np.delete(parts, at))
        degrees = np.delete(pairs[at], at)
        below = np.array([dunnett_quantile(level, len(behind), float(d), 0.5) for d in degrees])
        above = stats.t.ppf(level, degrees)
        ends.append(((behind - below * error).max(), (behind + above * error).max()))
    if not ends:
        return np.nan, np.nan
    lows, highs = zip(*ends, strict=True)
    return max(0.0, min(lows)), max(0.0, max(highs))
