"""Which camp a backbone is in: whether SGD-like or adaptive optimizers lead on it."""

import dataclasses

import numpy as np
import pandas
from scipy import stats

from bocb_jax.coupling.costs import diverged
from bocb_jax.coupling.noise import noise_of
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.paper import taxonomy
from bocb_jax.paper.categories import is_sgd_like, to_opt

_CLASSIC = ("primary CNN", "classical CNN")  # the paper's categories; the third is "modern DNN"


def preference(
    table: ScoreTable, categories: pandas.Series, noise: pandas.DataFrame
) -> pandas.DataFrame:
    """Return which kind of optimizers leads on each backbone: SGD-like or adaptive.

    SGD-like are those of category a whose step scales with the gradient, adaptive those of
    category b. What diverged ranks last.

    Args:
      table: the scores.
      categories: of every optimizer.
      noise: from `noise.estimate_noise`.

    Returns:
      Index backbone: points (median of the SGD-like minus median of the adaptive, positive where
      the former lead), points_low, points_high (95 percent by the noise of the seeds; NaN where it
      is not known), rank_difference (mean rank of the adaptive minus that of the SGD-like, over
      all optimizers), camp ("SGD-like" or "adaptive" where points and ranks agree and the interval,
      if there is one, excludes 0; else "either"; None where a kind is missing), n_sgd, n_adaptive.
    """
    sgd = [name for name in table.optimizers if is_sgd_like(to_opt(name), categories.get(name))]
    adaptive = [name for name in table.optimizers if categories.get(name) == "b"]
    goodness, counts = table.goodness(), table.counts()
    failed = diverged(table)
    rows = {}
    for backbone in table.backbones:
        column = goodness[backbone]
        ranked = column.where(~failed[backbone], -np.inf)
        ranks = ranked.rank(ascending=False)
        left, right = column[sgd].dropna(), column[adaptive].dropna()
        row = {
            "points": left.median() - right.median() if len(left) and len(right) else np.nan,
            "rank_difference": ranks[adaptive].mean() - ranks[sgd].mean(),
            "n_sgd": len(left),
            "n_adaptive": len(right),
        }
        half = _half_width(noise, backbone, counts, left.index, right.index)
        row |= {"points_low": row["points"] - half, "points_high": row["points"] + half}
        rows[backbone] = row | {"camp": _camp(row)}
    columns = [
        "points", "points_low", "points_high", "rank_difference", "camp", "n_sgd", "n_adaptive",
    ]  # fmt: skip
    frame = pandas.DataFrame.from_dict(rows, orient="index", columns=columns)
    frame["camp"] = frame["camp"].astype(object).where(frame["camp"].notna(), None)
    return frame.rename_axis("backbone")


def _half_width(
    noise: pandas.DataFrame,
    backbone: str,
    counts: pandas.DataFrame,
    *sides: pandas.Index,
) -> float:
    """Return half the 95 percent interval of the difference of two medians of means, at most.

    Where means lie apart, noise does not change which one is in the middle, so the median is as
    noisy as that one, or as the mean of the middle two; where they are close it is less noisy.
    """
    if not all(len(side) for side in sides):
        return np.nan
    total, least = 0.0, np.inf
    for side in sides:
        sd, df = noise_of(noise, backbone, side)
        parts = sd**2 / counts.loc[side, backbone].to_numpy(float)
        total += parts.max() if len(parts) % 2 else parts.max() / 2
        least = min(least, df.min())
    return float(stats.t.ppf(0.975, least) * np.sqrt(total))


def _camp(row: dict[str, float]) -> str | None:
    points, ranks = row["points"], row["rank_difference"]
    if np.isnan(ranks):
        return None
    sign = np.sign(points) if not np.isnan(points) else np.sign(ranks)
    if sign == 0 or sign != np.sign(ranks):
        return "either"
    if row["points_low"] <= 0 <= row["points_high"]:
        return "either"
    return "SGD-like" if sign > 0 else "adaptive"


@dataclasses.dataclass(frozen=True)
class Camps:
    """Which backbones SGD-like optimizers lead on, and whether classic CNNs are those."""

    members: dict[str, tuple[str, ...]]  # camp -> backbones, in the order of the table
    # Exact one-sided rank-sum test over families that classic CNNs favor SGD-like optimizers more
    # than others do, on the mean of `leads` over each family; None where it cannot be asked.
    p_value: float | None
    reverse_p_value: float | None  # of the reverse
    families: tuple[int, int]  # of classic CNNs, and of others


def find_camps(found: pandas.DataFrame, families: pandas.Series, classic: pandas.Series) -> Camps:
    """Return the camps of a table.

    Args:
      found: from `preference`.
      families: of every backbone.
      classic: whether each is a classic CNN; NaN where the paper does not say.
    """
    members: dict[str, list[str]] = {"SGD-like": [], "adaptive": [], "either": []}
    for backbone, camp in found["camp"].items():
        if camp is not None:
            members[camp].append(str(backbone))
    leading = leads(found)
    sides = [
        here.groupby(families.reindex(here.index)).mean().dropna().to_numpy()
        for here in (leading[classic.reindex(leading.index).eq(side)] for side in (True, False))
    ]
    p_values: list[float | None] = [None, None]
    if all(len(side) for side in sides) and sum(map(len, sides)) >= 4:
        p_values = [
            float(stats.mannwhitneyu(*sides, alternative=order, method="exact").pvalue)
            for order in ("greater", "less")
        ]
    return Camps(
        members={camp: tuple(names) for camp, names in members.items()},
        p_value=p_values[0],
        reverse_p_value=p_values[1],
        families=(len(sides[0]), len(sides[1])),
    )


def leads(found: pandas.DataFrame) -> pandas.Series:
    """Return `points` of `preference` by backbone, infinite where all of one kind diverged.

    Backbones that do not tell which kind leads are left out.
    """
    ranks = found["rank_difference"]
    sides = pandas.Series(np.where(ranks > 0, np.inf, -np.inf), ranks.index).where(ranks.abs() > 0)
    return found["points"].fillna(sides).dropna()


def classic_of(backbones: list[str]) -> pandas.Series:
    """Return whether each backbone is a classic CNN; NaN where the paper has no relative of it."""
    found = {name: taxonomy.find(name) for name in backbones}
    return pandas.Series(
        {name: known and known.category in _CLASSIC for name, known in found.items()}, dtype=object
    )
