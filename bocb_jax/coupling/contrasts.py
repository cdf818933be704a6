"""Contrast of two categories of optimizers: which is better, and does it depend on the backbone?"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas
from scipy import stats

from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.coupling.significance import holm
from bocb_jax.paper.categories import category, to_opt


@dataclasses.dataclass(frozen=True)
class CategoryContrast:
    """Contrast of two categories of optimizers: median of one minus median of the other."""

    first: str  # category, e.g. "a"
    second: str  # e.g. "b"
    first_optimizers: tuple[str, ...]
    second_optimizers: tuple[str, ...]
    # Index backbone: contrast (of medians, larger is better for `first`), shift (Hodges-Lehmann),
    # low, high (exact interval of the shift; infinite with too few optimizers), p_value
    # (Mann-Whitney), p_holm, n_first, n_second, best_first, best_second (names).
    contrasts: pandas.DataFrame
    overall: float  # median contrast over backbones
    overall_low: float  # bootstrap over families of backbones
    overall_high: float
    differs_p: float | None  # does the contrast differ between backbones (permutation test)
    permutations: int  # assignments of optimizers to categories behind that p-value
    exact: bool  # whether these were all assignments
    description: str  # what was tested, in words


def category_of(
    optimizers: list[str], categories: Mapping[str, str] | None = None
) -> pandas.Series:
    """Return the category of every optimizer, as given or else by the paper's definition.

    None where neither gives one.
    """
    own = categories or {}
    found = {name: own.get(name) or category(to_opt(name))[0] for name in optimizers}
    return pandas.Series(found, dtype=object)


def contrast(
    table: ScoreTable,
    categories: pandas.Series,
    families: pandas.Series,
    *,
    first: str = "a",
    second: str = "b",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> CategoryContrast | None:
    """Compare two categories of optimizers on every backbone.

    Whether the contrast differs between backbones (the paper's headline) is tested by permuting
    whole optimizers between the two categories, because an optimizer's scores on twenty backbones
    are not twenty independent draws. Main effects of optimizers are removed first.

    Args:
      table: the scores.
      categories: of every optimizer.
      families: of every backbone.
      first, second: the categories.
      confidence: of the intervals.
      resamples: draws of the bootstrap, and at most so many permutations.
      seed: of the draws.

    Returns:
      None if either category has fewer than two optimizers.
    """
    matrix = table.goodness()
    sides = [[o for o in matrix.index if categories.get(o) == side] for side in (first, second)]
    if min(map(len, sides)) < 2:
        return None
    rows = {}
    for backbone in matrix:
        left, right = (matrix.loc[side, backbone].dropna() for side in sides)
        if len(left) and len(right):
            rows[backbone] = _row(left, right, confidence)
    contrasts = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("backbone")
    if contrasts.empty:
        return None
    contrasts.insert(5, "p_holm", holm(contrasts["p_value"]))
    rng = np.random.default_rng(seed)
    values = contrasts["contrast"]
    low, high = block_bootstrap(
        values, families.reindex(values.index), np.median, confidence, resamples, rng
    )
    p_value, count, exact = _differs(matrix.loc[sides[0] + sides[1]], len(sides[0]), resamples, rng)
    return CategoryContrast(
        first=first,
        second=second,
        first_optimizers=tuple(sides[0]),
        second_optimizers=tuple(sides[1]),
        contrasts=contrasts,
        overall=float(values.median()),
        overall_low=low,
        overall_high=high,
        differs_p=p_value,
        permutations=count,
        exact=exact,
        description=_described(first, second, *map(len, sides), count=count, exact=exact),
    )


def _described(
    first: str, second: str, n_first: int, n_second: int, *, count: int, exact: bool
) -> str:
    return (
        f"On every backbone the median of category {first} minus that of category {second}. "
        "Whether it differs between backbones: spread of the contrast over backbones, against "
        f"{'all' if exact else 'random'} {count} ways to call {n_first} of these "
        f"{n_first + n_second} optimizers category {first}."
    )


def _row(left: pandas.Series, right: pandas.Series, confidence: float) -> dict[str, Any]:
    """Return a row of `CategoryContrast.contrasts` from the scores of both categories."""
    shift, low, high = hodges_lehmann(left.to_numpy(), right.to_numpy(), confidence)
    return {
        "contrast": left.median() - right.median(),
        "shift": shift,
        "low": low,
        "high": high,
        "p_value": float(stats.mannwhitneyu(left, right).pvalue),
        "n_first": len(left),
        "n_second": len(right),
        "best_first": left.idxmax(),
        "best_second": right.idxmax(),
    }


def hodges_lehmann(
    first: np.ndarray, second: np.ndarray, confidence: float
) -> tuple[float, float, float]:
    """Return the median of all differences, and the shifts that Mann-Whitney does not reject.

    Exact for shifted distributions. With too few scores no interval reaches the confidence, and the
    bounds are infinite.

    Returns:
      center, low, high.
    """
    differences = np.sort(np.subtract.outer(first, second).ravel())
    cumulative = np.cumsum(mann_whitney_counts(len(first), len(second)))
    # The largest k with P(U < k) <= alpha / 2: k differences are cut off on each side.
    limit = (1 - confidence) / 2 * cumulative[-1]
    cut = int(np.searchsorted(cumulative, limit, side="right"))
    center = float(np.median(differences))
    if cut == 0:
        return center, -math.inf, math.inf
    return center, float(differences[cut - 1]), float(differences[-cut])


def mann_whitney_counts(first: int, second: int) -> np.ndarray:
    """Return in how many orders of two samples U is 0, 1, ..., first * second.

    All orders are equally likely without an effect.
    """
    # The coefficients of the Gaussian binomial: product of (1 - q^(second + i)) / (1 - q^i).
    counts = np.zeros(first * second + 1)
    counts[0] = 1
    for i in range(1, first + 1):
        high = second + i
        if high <= first * second:
            counts[high:] -= counts[:-high].copy()
        for u in range(i, len(counts)):
            counts[u] += counts[u - i]
    return counts


def _differs(
    matrix: pandas.DataFrame, size: int, resamples: int, rng: np.random.Generator
) -> tuple[float | None, int, bool]:
    """Return whether the contrast differs between backbones: p-value, assignments, whether all.

    Args:
      matrix: optimizers x backbones, those of the first category first.
      size: number of optimizers in the first category.
      resamples: assignments to draw if there are more.
      rng: of the draws.
    """
    matrix = matrix.dropna(axis=1)
    count = len(matrix)
    if matrix.shape[1] < 2:
        return None, 0, False
    values = matrix.to_numpy()
    values = values - values.mean(axis=1, keepdims=True)
    total = math.comb(count, size)
    exact = total <= resamples
    if exact:
        chosen = np.array(list(itertools.combinations(range(count), size)))
    else:
        chosen = rng.permuted(np.tile(np.arange(count), (resamples, 1)), axis=1)[:, :size]
        chosen = np.vstack([np.arange(size), chosen])
    inside = np.zeros((len(chosen), count), bool)
    np.put_along_axis(inside, chosen, True, axis=1)
    spread = np.array(
        [
            (np.median(values[rows], axis=0) - np.median(values[~rows], axis=0)).std()
            for rows in inside
        ]
    )
    # The first is the true assignment.
    p_value = float((spread >= spread[0] * (1 - 1e-9)).mean())
    return p_value, total if exact else resamples, exact


def block_bootstrap(
    values: pandas.Series,
    blocks: pandas.Series,
    statistic: Callable[[np.ndarray], float],
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic when whole blocks (families) are resampled.

    Args:
      values: one per member.
      blocks: the block of every member.
      statistic: of a NumPy array.
      confidence: of the interval.
      resamples: draws.
      rng: source of the draws.

    Returns:
      low, high; NaN with fewer than two blocks.
    """
    groups = [group.to_numpy() for _, group in values.groupby(blocks.to_numpy(), sort=False)]
    if len(groups) < 2:
        return math.nan, math.nan
    draws = rng.integers(len(groups), size=(resamples, len(groups)))
    found = [statistic(np.concatenate([groups[i] for i in draw])) for draw in draws]
    tail = (1 - confidence) / 2
    return float(np.quantile(found, tail)), float(np.quantile(found, 1 - tail))
