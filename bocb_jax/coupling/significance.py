"""Do optimizers differ at all, which ones, and how much of it is chance?

Backbones are the blocks. Backbones of one family (five MetaFormers, two ConvNeXts) are not
independent, so each test is also given with families as blocks.
"""

import dataclasses
import itertools

import numpy as np
import pandas
import scikit_posthocs
from scipy import stats

from bocb_jax.coupling.scores import ScoreTable


@dataclasses.dataclass(frozen=True)
class Friedman:
    """Do optimizers differ in rank over backbones?"""

    statistic: float
    p_value: float
    iman_davenport_f: float
    iman_davenport_p: float
    kendall_w: float  # agreement of the backbones, 0 to 1
    backbones: int  # blocks
    optimizers: int
    # The same over families of backbones, whose members are not independent; None if unknown.
    family_p_value: float | None
    families: int | None


@dataclasses.dataclass(frozen=True)
class Nemenyi:
    """Mean ranks and the critical difference, as in Demsar (2006)."""

    mean_ranks: pandas.Series  # by optimizer, best first; 1 is best
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]  # optimizers that do not differ, for the diagram's bars
    p_values: pandas.DataFrame  # optimizers x optimizers
    backbones: int
    alpha: float


def complete(goodness: pandas.DataFrame) -> pandas.DataFrame:
    """The part of a table without missing cells, for tests that know no others.

    Optimizers with a score on less than half of the backbones go first, then every backbone that
    still misses one.
    """
    goodness = goodness.loc[goodness.notna().mean(axis=1) >= 0.5]
    return goodness.dropna(axis=1, how="any")


def friedman(goodness: pandas.DataFrame, families: pandas.Series | None) -> Friedman | None:
    """Friedman's test (SciPy) with the F of Iman and Davenport (1980), which is less timid.

    Args:
      goodness: optimizers x backbones, larger is better.
      families: family of every backbone, or None.

    Returns:
      None with fewer than three optimizers or two backbones that are complete.
    """
    scores = complete(goodness)
    optimizers, backbones = scores.shape
    if optimizers < 3 or backbones < 2 or _all_tied(scores):
        return None
    statistic, p_value = stats.friedmanchisquare(*scores.to_numpy())
    degrees = optimizers - 1, (optimizers - 1) * (backbones - 1)
    rest = backbones * (optimizers - 1) - statistic
    f = (backbones - 1) * statistic / rest if rest > 1e-9 else np.inf
    family_p = number = None
    if families is not None:
        means = family_means(scores, families)
        number = means.shape[1]
        if number >= 2 and not _all_tied(means):
            family_p = float(stats.friedmanchisquare(*means.to_numpy())[1])
    return Friedman(
        statistic=float(statistic),
        p_value=float(p_value),
        iman_davenport_f=float(f),
        iman_davenport_p=float(stats.f.sf(f, *degrees)),
        kendall_w=float(statistic / (backbones * (optimizers - 1))),
        backbones=backbones,
        optimizers=optimizers,
        family_p_value=family_p,
        families=number,
    )


def _all_tied(scores: pandas.DataFrame) -> bool:
    return bool((scores.max() == scores.min()).all())


def family_means(goodness: pandas.DataFrame, families: pandas.Series) -> pandas.DataFrame:
    """Optimizers x families: mean over the backbones of a family, after each backbone's mean.

    Without the latter a family's figure would follow its easiest backbone.
    """
    centered = goodness - goodness.mean()
    return centered.T.groupby(families.reindex(goodness.columns).to_numpy(), sort=False).mean().T


def nemenyi(goodness: pandas.DataFrame, *, confidence: float = 0.95) -> Nemenyi | None:
    """Nemenyi's test (scikit-posthocs) and its critical difference.

    Returns:
      None with fewer than three optimizers or two backbones that are complete.
    """
    scores = complete(goodness)
    optimizers, backbones = scores.shape
    if optimizers < 3 or backbones < 2:
        return None
    ranks = scores.rank(ascending=False).mean(axis=1).sort_values(kind="stable")
    quantile = stats.studentized_range.ppf(confidence, optimizers, np.inf) / np.sqrt(2)
    difference = float(quantile * np.sqrt(optimizers * (optimizers + 1) / (6 * backbones)))
    p_values = scikit_posthocs.posthoc_nemenyi_friedman(scores.to_numpy().T)
    names = scores.index
    return Nemenyi(
        mean_ranks=ranks,
        critical_difference=difference,
        groups=_groups(ranks, difference),
        p_values=pandas.DataFrame(p_values.to_numpy(), index=names, columns=names),
        backbones=backbones,
        alpha=1 - confidence,
    )


def _groups(ranks: pandas.Series, difference: float) -> tuple[tuple[str, ...], ...]:
    """Longest runs of neighbors that lie within the critical difference."""
    found, end_before = [], -1
    values = ranks.to_numpy()
    for start in range(len(values)):
        end = int(np.searchsorted(values, values[start] + difference, side="right")) - 1
        if end > end_before and end > start:
            found.append(tuple(ranks.index[start : end + 1]))
        end_before = max(end, end_before)
    return tuple(found)


def pairwise(goodness: pandas.DataFrame, families: pandas.Series | None) -> pandas.DataFrame | None:
    """Wilcoxon's signed-rank test of every two optimizers over backbones, with Holm's correction.

    Zeros are treated as Pratt (1959) does. The p-value is exact, but normal with ties.

    Returns:
      A row a pair: first, second, n (backbones with both), median_difference (first - second, in
      the unit of `goodness`), statistic, p_value, p_holm; p_family and families: the same over
      means of families. None for one optimizer.
    """
    if len(goodness) < 2:
        return None
    pairs = list(itertools.combinations(range(len(goodness)), 2))
    first, second = np.array(pairs).T
    names = goodness.index
    values = goodness.to_numpy(float)
    differences = values[first] - values[second]
    frame = pandas.DataFrame(
        {
            "first": names[first],
            "second": names[second],
            "n": (~np.isnan(differences)).sum(axis=1),
            "median_difference": pandas.DataFrame(differences).median(axis=1),
        }
    )
    frame["statistic"], frame["p_value"] = _wilcoxon(differences)
    frame["p_holm"] = holm(frame["p_value"])
    if families is not None:
        blocks = families.reindex(goodness.columns).to_numpy()
        means = pandas.DataFrame(differences).T.groupby(blocks).mean().T.to_numpy()
        frame["p_family"] = _wilcoxon(means)[1]
        frame["families"] = (~np.isnan(means)).sum(axis=1)
    return frame


def _wilcoxon(differences: np.ndarray) -> np.ndarray:
    """(2, rows): statistic and p-value of every row, NaN being missing."""
    found = np.full((2, len(differences)), np.nan)
    known = ~np.isnan(differences)
    counts = known.sum(axis=1)
    sizes = np.sort(np.abs(np.where(known, differences, np.inf)), axis=1)
    # Exact without ties; with them SciPy would permute, a second for every pair.
    tied = (sizes[:, 0] == 0) | ((sizes[:, 1:] == sizes[:, :-1]) & (sizes[:, 1:] < np.inf)).any(1)
    tied |= counts > 50
    nothing = (counts > 1) & (np.nanmax(np.where(known, np.abs(differences), 0), axis=1) == 0)
    found[:, nothing] = [[0.0], [1.0]]
    for count, approximate in {*zip(counts.tolist(), tied.tolist(), strict=True)}:
        rows = (counts == count) & (tied == approximate) & ~nothing
        if count < 2 or not rows.any():
            continue
        block = differences[rows][known[rows]].reshape(-1, count)
        method = "asymptotic" if approximate else "exact"
        outcome = stats.wilcoxon(block, zero_method="pratt", method=method, axis=1)
        found[:, rows] = outcome.statistic, outcome.pvalue
    return found


def holm(p_values: pandas.Series) -> pandas.Series:
    """Holm's step-down correction; NaN stays NaN and does not count."""
    known = p_values.notna()
    corrected = pandas.Series(np.nan, index=p_values.index)
    values = p_values[known].to_numpy(float, copy=True)
    # As statsmodels' multipletests, which collects garbage at every call: a third of a second with
    # a large table in memory.
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    values[order] = np.minimum(steps, 1)
    corrected[known] = values
    return corrected


def against_best(table: ScoreTable) -> pandas.DataFrame | None:
    """On every backbone, which optimizers are told apart from the best by the seeds there are.

    Welch's t-test of the best optimizer (by mean) and each other, Holm's correction within the
    backbone. The best is chosen by the same seeds, so p-values lean to the small side.

    Returns:
      backbone, optimizer, best, difference, p_value, p_holm, n, n_best; None without seeds.
    """
    if table.one_seed:
        return None
    sign = 1 if table.higher_is_better else -1
    rows = []
    for backbone, runs in table.runs.dropna(subset="score").groupby("backbone", sort=False):
        groups = {
            name: sign * scores.to_numpy(float)
            for name, scores in runs.groupby("optimizer", sort=False)["score"]
        }
        best = max(groups, key=lambda name: groups[name].mean())
        for name, scores in groups.items():
            if name == best:
                continue
            rows.append(
                {
                    "backbone": backbone,
                    "optimizer": name,
                    "best": best,
                    "difference": sign * (scores.mean() - groups[best].mean()),
                    "p_value": welch(groups[best], scores)[2],
                    "n": len(scores),
                    "n_best": len(groups[best]),
                }
            )
    frame = pandas.DataFrame(rows)
    if frame.empty:
        return None
    corrected = frame.groupby("backbone", sort=False)["p_value"].transform(holm)
    frame.insert(5, "p_holm", corrected)
    return frame


def welch(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> tuple:
    """Interval and p-value of a difference of means, variances not taken for equal.

    Returns:
      low, high, p_value; NaN where a side has one score or neither has a spread.
    """
    sides = [np.asarray(side, float) for side in (first, second)]
    if min(map(len, sides)) < 2:
        return np.nan, np.nan, np.nan
    difference = sides[0].mean() - sides[1].mean()
    parts = [side.var(ddof=1) / len(side) for side in sides]
    if not sum(parts) > 0:
        return difference, difference, float(difference == 0)
    error = np.sqrt(sum(parts))
    degrees = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True)
    )
    reach = stats.t.ppf((1 + confidence) / 2, degrees) * error
    p_value = 2 * stats.t.sf(abs(difference) / error, degrees)
    return difference - reach, difference + reach, float(p_value)
