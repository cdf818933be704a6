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
    the set. Its mean over backbones is minimized. Optimizers whose cost is known on less than half
    of the backbones are not in any set; on a backbone where the cost of another is not known, it
    counts as the worst that is.

    Args:
      costs: regrets, optimizers x backbones, from `costs.costs_of`; NaN where not known.
      families: of every backbone.
      largest: the largest k.

    Returns:
      Index k: optimizers (tuple, in the order of the table), mean and worst remaining regret,
      worst_backbone, left_out and left_out_worst (the same on each family with the set chosen from
      the other families; NaN with a single family, or in large tables), exhaustive (whether all
      sets were tried). Without the larger k where there are fewer optimizers, or where nothing is
      lost with fewer.
    """
    kept = costs.columns[costs.notna().any()]
    known = costs[kept].notna().mean(axis=1) >= 0.5
    costs = costs[kept].fillna(costs[kept].max())[known]
    values = costs.to_numpy(float)
    groups = pandas.factorize(families.reindex(kept))[0]
    rows = []
    for k in range(1, min(largest, len(costs)) + 1):
        exhaustive = math.comb(len(costs), k) <= _MOST_COMBINATIONS
        chosen = _best_set(values, k)
        remaining = values[list(chosen)].min(axis=0)
        left = np.full(len(kept), np.nan)
        others = np.unique(groups)
        sets = math.comb(len(costs), k) if exhaustive else len(costs) * k
        if len(others) < 2 or len(others) * sets * k * len(kept) > _MOST_WORK:
            others = others[:0]
        for group in others:
            out = groups == group
            left[out] = values[list(_best_set(values[:, ~out], k))][:, out].min(axis=0)
        rows.append(
            {
                "k": k,
                "optimizers": tuple(costs.index[list(chosen)]),
                "mean": remaining.mean(),
                "worst": remaining.max(),
                "worst_backbone": kept[int(remaining.argmax())],
                "left_out": left.mean(),
                "left_out_worst": left.max(),
                "exhaustive": exhaustive,
            }
        )
        if (remaining <= 1e-9).all():
            break  # what more optimizers would add is chance
    columns = [
        "k", "optimizers", "mean", "worst", "worst_backbone", "left_out", "left_out_worst",
        "exhaustive",
    ]  # fmt: skip
    return pandas.DataFrame(rows, columns=columns).astype({"k": int}).set_index("k")


def _best_set(values: np.ndarray, k: int) -> tuple[int, ...]:
    """Return the k rows with the lowest mean of the least cost, in ascending order."""
    if math.comb(len(values), k) <= _MOST_COMBINATIONS:
        sets = np.array(list(itertools.combinations(range(len(values)), k)))
        step = max(1, 2**22 // max(1, values.shape[1] * k))
        means = np.concatenate(
            [
                values[sets[start : start + step]].min(axis=1).mean(axis=1)
                for start in range(0, len(sets), step)
            ]
        )
        return tuple(int(row) for row in sets[means.argmin()])
    chosen: list[int] = []
    least = np.full(values.shape[1], np.inf)
    for _ in range(k):
        means = np.minimum(values, least).mean(axis=1)
        means[chosen] = np.inf
        chosen.append(int(means.argmin()))
        least = np.minimum(least, values[chosen[-1]])
    return tuple(sorted(chosen))
