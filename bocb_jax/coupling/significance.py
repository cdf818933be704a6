"""Significance tests of a table of scores, in three groups.

Of the interaction; of optimizers across backbones, where every backbone is a block; and of
optimizers within one backbone, over its seeds. Backbones of one family (five MetaFormers, two
ConvNeXts) are not independent, so Friedman's and Wilcoxon's tests are also given with families as
blocks.
"""

import dataclasses
import itertools

import numpy as np
import pandas
import scikit_posthocs
from scipy import stats

from bocb_jax.coupling import noncentral
from bocb_jax.coupling.cells import MOST_CELLS, Cells, noise_variance
from bocb_jax.coupling.score_table import ScoreTable

_CHUNK = 2**22  # numbers that one batch of permutations may hold


@dataclasses.dataclass(frozen=True)
class Tukey:
    """Tukey's test for one degree of freedom of interaction, for tables of one seed per cell.

    It detects only coupling that is a multiple of (optimizer effect x backbone effect).
    """

    f: float
    degrees_of_freedom: tuple[int, int]
    p_value: float
    coefficient: float  # of the product of backbone and optimizer effects
    share: float  # of the interaction's sum of squares that this product explains


@dataclasses.dataclass(frozen=True)
class Friedman:
    """Friedman's test: do optimizers differ in rank over backbones?"""

    statistic: float
    p_value: float
    iman_davenport_f: float
    iman_davenport_p: float
    kendall_w: float  # agreement of the backbones, 0 to 1
    backbones: int  # blocks
    optimizers: int
    # With families of backbones as blocks; None if families are not known.
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


# -- of the interaction ----------------------------------------------------------------------------


def interaction_permutation_test(
    cells: Cells, permutations: int, rng: np.random.Generator
) -> float | None:
    """Return the p-value of the interaction by Freedman and Lane's permutation test.

    The residuals of the additive model are shuffled among all runs (Freedman and Lane 1983;
    Anderson and ter Braak 2003). The statistic is the interaction's sum of squares over that of the
    noise, a monotone function of F. Adding the additive fit back would change neither, so it is
    left out.

    Returns:
      1 if the additive model fits without residuals. None if no cell has two runs, if the runs of
      every cell agree exactly, or if the additive model leaves no degree of freedom.
    """
    interaction_df, noise_df = cells.degrees_of_freedom
    if noise_df == 0 or interaction_df == 0:
        return None
    means = cells.means(cells.values)
    additive = means - cells.interaction(means)
    residuals = cells.values - np.repeat(additive, cells.counts)
    total = (residuals**2).sum()

    def ratio(values: np.ndarray) -> np.ndarray:
        means = cells.means(values)
        interaction = (cells.counts * cells.interaction(means) ** 2).sum(-1)
        noise = total - (cells.counts * means**2).sum(-1)
        return interaction / np.maximum(noise, 1e-12 * total)

    if not total > 1e-24 * (cells.values**2).sum():
        return 1.0
    if not noise_variance(cells):
        return None
    observed = ratio(residuals)
    larger = 0
    step = max(1, _CHUNK // len(residuals))
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        drawn = rng.permuted(np.broadcast_to(residuals, (count, len(residuals))), axis=1)
        larger += int((ratio(drawn) >= observed * (1 - 1e-9)).sum())
    return (1 + larger) / (1 + permutations)


def tukey_test(cells: Cells) -> Tukey | None:
    """Return Tukey's (1949) test on the cell means; None with too few cells."""
    means = cells.means(cells.values)
    interaction = cells.interaction(means)
    degrees = cells.degrees_of_freedom[0] - 1
    _, rows, columns = cells.effects()
    outer = rows[cells.optimizer] * columns[cells.backbone]
    product = cells.interaction(outer)

    def sum_of_squares(values: np.ndarray) -> float:
        return float((cells.counts * values**2).sum())

    product_ss, interaction_ss = sum_of_squares(product), sum_of_squares(interaction)
    without_product = not product_ss > 1e-18 * sum_of_squares(outer)
    only_rounding = not interaction_ss > 1e-20 * sum_of_squares(means)
    if degrees < 1 or without_product or only_rounding:
        return None
    coefficient = float((cells.counts * product * interaction).sum()) / product_ss
    explained = coefficient**2 * product_ss
    f = explained / max((interaction_ss - explained) / degrees, 1e-300)
    return Tukey(
        f=f,
        degrees_of_freedom=(1, degrees),
        p_value=noncentral.f_p_value(f, 1, degrees),
        coefficient=coefficient,
        share=explained / interaction_ss,
    )


# -- of optimizers over backbones ------------------------------------------------------------------


def without_gaps(goodness: pandas.DataFrame) -> pandas.DataFrame:
    """Return the part of a table without missing cells, which rank tests need.

    Optimizers with a score on less than half of the backbones are dropped first, then every
    backbone that still lacks one.
    """
    goodness = goodness.loc[goodness.notna().mean(axis=1) >= 0.5]
    return goodness.dropna(axis=1, how="any")


def friedman(goodness: pandas.DataFrame, families: pandas.Series | None) -> Friedman | None:
    """Return Friedman's test, with the less conservative F of Iman and Davenport (1980).

    Args:
      goodness: optimizers x backbones, larger is better.
      families: family of every backbone, or None.

    Returns:
      None if fewer than three optimizers or two backbones are left `without_gaps`, or all scores
      of every backbone tie.
    """
    scores = without_gaps(goodness)
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
    """Average goodness over the backbones of each family, centered per backbone first.

    Returns:
      Optimizers x families.
    """
    centered = goodness - goodness.mean()
    return centered.T.groupby(families.reindex(goodness.columns).to_numpy(), sort=False).mean().T


def nemenyi(goodness: pandas.DataFrame, *, confidence: float = 0.95) -> Nemenyi | None:
    """Return Nemenyi's test and its critical difference.

    Returns:
      None if fewer than three optimizers or two backbones are left `without_gaps`, or more than
      `MOST_CELLS`, or if no two mean ranks could lie as far apart as the critical difference.
    """
    scores = without_gaps(goodness)
    optimizers, backbones = scores.shape
    if optimizers < 3 or backbones < 2 or scores.size > MOST_CELLS:
        return None
    ranks = scores.rank(ascending=False).mean(axis=1).sort_values(kind="stable")
    quantile = stats.studentized_range.ppf(confidence, optimizers, np.inf) / np.sqrt(2)
    difference = float(quantile * np.sqrt(optimizers * (optimizers + 1) / (6 * backbones)))
    if difference >= optimizers - 1:
        return None
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
    """Return the longest runs of neighboring ranks that lie within the critical difference."""
    found, end_before = [], -1
    values = ranks.to_numpy()
    for start in range(len(values)):
        end = int(np.searchsorted(values, values[start] + difference, side="right")) - 1
        if end > end_before and end > start:
            found.append(tuple(ranks.index[start : end + 1]))
        end_before = max(end, end_before)
    return tuple(found)


def pairwise(goodness: pandas.DataFrame, families: pandas.Series | None) -> pandas.DataFrame | None:
    """Compare every two optimizers over backbones: Wilcoxon's signed-rank test, Holm's correction.

    Zeros are treated as in Pratt (1959). The p-value is exact for up to 50 differences without ties
    or zeros, else asymptotic.

    Args:
      goodness: optimizers x backbones, larger is better.
      families: family of every backbone, or None.

    Returns:
      A row a pair: first, second, n (backbones with both), median_difference (first - second, in
      the unit of `goodness`), statistic, p_value, p_holm; with families also p_family (the p-value
      with families as blocks, not corrected) and families (their number). None for one optimizer,
      or more than `MOST_CELLS`.
    """
    if len(goodness) < 2 or goodness.size > MOST_CELLS:
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
    """Return (2, rows): statistic and p-value of every row of differences; NaN is missing."""
    found = np.full((2, len(differences)), np.nan)
    known = ~np.isnan(differences)
    counts = known.sum(axis=1)
    sizes = np.sort(np.abs(np.where(known, differences, np.inf)), axis=1)
    # With ties SciPy's exact method would permute, which takes a second for every pair.
    tied = (sizes[:, 0] == 0) | ((sizes[:, 1:] == sizes[:, :-1]) & (sizes[:, 1:] < np.inf)).any(1)
    approximated = tied | (counts > 50)
    nothing = (counts > 1) & (np.nanmax(np.where(known, np.abs(differences), 0), axis=1) == 0)
    found[:, nothing] = [[0.0], [1.0]]
    for count, approximate in {*zip(counts.tolist(), approximated.tolist(), strict=True)}:
        rows = (counts == count) & (approximated == approximate) & ~nothing
        if count < 2 or not rows.any():
            continue
        block = differences[rows][known[rows]].reshape(-1, count)
        method = "asymptotic" if approximate else "exact"
        outcome = stats.wilcoxon(block, zero_method="pratt", method=method, axis=1)
        found[:, rows] = outcome.statistic, outcome.pvalue
    return found


def holm(p_values: pandas.Series) -> pandas.Series:
    """Return p-values after Holm's step-down correction; NaN stays NaN and does not count."""
    known = p_values.notna()
    corrected = pandas.Series(np.nan, index=p_values.index)
    values = p_values[known].to_numpy(float, copy=True)
    # Written out because statsmodels' multipletests runs the garbage collector at every call, which
    # takes a third of a second with a large table in memory.
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    values[order] = np.minimum(steps, 1)
    corrected[known] = values
    return corrected


# -- within a backbone -----------------------------------------------------------------------------


def against_best(table: ScoreTable) -> pandas.DataFrame | None:
    """Compare the best optimizer of every backbone (by mean) with each other one, over seeds.

    Welch's t-test with Holm's correction within the backbone. The best is chosen by the same seeds,
    so the p-values are somewhat too small.

    Returns:
      backbone, optimizer, best, difference (optimizer - best, in the unit of the scores), p_value,
      p_holm, n, n_best; None if no cell has two seeds.
    """
    if table.one_seed:
        return None
    sign = table.sign
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


def welch(
    first: np.ndarray, second: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the interval and p-value of the difference of two means, first - second (Welch).

    Returns:
      low, high, p_value; NaN where a side has fewer than two scores.
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
