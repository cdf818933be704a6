"""What remains to be lost if only a few optimizers may be tried: the portfolio of a table."""

import itertools
import math

import numpy as np
import pandas

_MOST_COMBINATIONS = 50_000  # more are not enumerated; then optimizers are added one by one
_LARGEST = 5
# Families are left out in turn only if that takes no more additions: 300 x 300 would be minutes.
_MOST_WORK = 5e8


def portfolio(
    costs: pandas.DataFrame, families: pandas.Series, *, largest: int = _LARGEST
) -> pandas.DataFrame:
    """Return the best sets of k optimizers to try, and the regret that remains.

    On every backbone the best of the set is taken, so the remaining regret is the least cost over
    the set. Its mean over backbones is minimized.

    Args:
      costs: regrets, optimizers x backbones, from `costs.costs_of`; NaN where not known.
      families: of every backbone.
      largest: the largest k.

    Returns:
      Index k: optimizers (tuple, in the order of the table), mean and worst remaining regret,
      worst_backbone, left_out and left_out_worst (the same on each family with the set chosen from
      the other families; NaN with a single family, or in large tables), exhaustive (whether all
      sets were tried).
    """
    kept = costs.columns[costs.notna().any()]
    values = costs[kept].to_numpy(float)
    groups = pandas.factorize(families.reindex(kept))[0]
    rows = []
    for k in range(1, min(largest, len(costs)) + 1 if len(kept) else 1):
        exhaustive = math.comb(len(costs), k) <= _MOST_COMBINATIONS
        chosen = _best_set(values, k)
        remaining = _remaining(values, chosen)
        if np.isnan(remaining).all():
            continue
        left = np.full(len(kept), np.nan)
        others = np.unique(groups)
        sets = math.comb(len(costs), k) if exhaustive else len(costs) * k
        if len(others) < 2 or len(others) * sets * k * len(kept) > _MOST_WORK:
            others = others[:0]
        for group in others:
            out = groups == group
            left[out] = _remaining(values[:, out], _best_set(values[:, ~out], k))
        unknown = np.isnan(left).all()
        rows.append(
            {
                "k": k,
                "optimizers": tuple(costs.index[list(chosen)]),
                "mean": np.nanmean(remaining),
                "worst": np.nanmax(remaining),
                "worst_backbone": kept[int(np.nanargmax(remaining))],
                "left_out": np.nan if unknown else np.nanmean(left),
                "left_out_worst": np.nan if unknown else np.nanmax(left),
                "exhaustive": exhaustive,
            }
        )
    columns = [
        "k", "optimizers", "mean", "worst", "worst_backbone", "left_out", "left_out_worst",
        "exhaustive",
    ]  # fmt: skip
    return pandas.DataFrame(rows, columns=columns).set_index("k")


def _remaining(values: np.ndarray, chosen: tuple[int, ...]) -> np.ndarray:
    """Return the least cost over the chosen rows; NaN where none of them is known."""
    costs = np.where(np.isnan(values[list(chosen)]), np.inf, values[list(chosen)]).min(axis=0)
    return np.where(np.isfinite(costs), costs, np.nan)


def _best_set(values: np.ndarray, k: int) -> tuple[int, ...]:
    """Return the k rows with the lowest mean of the least cost, in ascending order.

    What no row of a set is known on costs as much there as the worst that is known.
    """
    worst = np.nanmax(np.where(np.isnan(values), -np.inf, values), axis=0)
    filled = np.where(np.isnan(values), worst, values)
    if math.comb(len(values), k) <= _MOST_COMBINATIONS:
        sets = np.array(list(itertools.combinations(range(len(values)), k)))
        step = max(1, 2**22 // max(1, filled.shape[1] * k))
        means = np.concatenate(
            [
                filled[sets[start : start + step]].min(axis=1).mean(axis=1)
                for start in range(0, len(sets), step)
            ]
        )
        return tuple(int(row) for row in sets[means.argmin()])
    chosen: list[int] = []
    least = np.full(filled.shape[1], np.inf)
    for _ in range(k):
        means = np.minimum(filled, least).mean(axis=1)
        means[chosen] = np.inf
        chosen.append(int(means.argmin()))
        least = np.minimum(least, filled[chosen[-1]])
    return tuple(sorted(chosen))
