"""Rankings of optimizers: the paper's weighted ranking, and performance profiles."""

import dataclasses
from typing import Any

import numpy as np
import pandas

from bocb_jax import paper
from bocb_jax.coupling.outliers import Outliers
from bocb_jax.coupling.score_table import ScoreTable, regret_of
from bocb_jax.coupling.tuning import Hyperparameters

# The weights of the paper's Table 4.
WEIGHTS = {
    "performance_rank": 0.4,
    "hyperparameter_rank": 0.2,
    "flag": 0.2,
    "computation_rank": 0.2,
}
_LARGEST_REGRET = 10  # in profiles, in multiples of what counts as equal by default
_LARGEST_RATIO = 4.0  # as in AlgoPerf
_POINTS = 201


@dataclasses.dataclass(frozen=True)
class Profiles:
    """Performance profiles (Dolan & More 2002; Dahl et al. 2023): share of backbones within tau.

    A score is the area under a profile up to the largest tau shown, divided by its width.
    """

    by_regret: pandas.DataFrame  # index tau in the unit of the score, columns optimizers
    by_error_ratio: pandas.DataFrame | None  # index tau: error over the column's lowest error
    by_time_ratio: pandas.DataFrame | None  # index tau: seconds to target over the fastest
    # Index optimizer: n (backbones with a score); regret, error_ratio, time_ratio (areas, 0 to 1).
    scores: pandas.DataFrame
    backbones: int


def overall(components: pandas.DataFrame) -> pandas.Series:
    """Return the weighted sum of ranks of the paper's Table 4; smaller is better.

    The flag enters as the 0 or 1 that the paper uses, so beside ranks up to 20 it hardly counts. A
    component that is missing for any optimizer is left out, and the other weights grow.

    Args:
      components: index optimizer, columns as in `WEIGHTS`.
    """
    present = [name for name in WEIGHTS if components[name].notna().all()]
    weights = pandas.Series(WEIGHTS)[present]
    return (components[present] * weights).sum(axis=1) / weights.sum()


def rank(
    table: ScoreTable, outliers: Outliers, hyperparameters: Hyperparameters | None
) -> pandas.DataFrame:
    """Rank optimizers as the paper does, from a table's own figures.

    Performance is the mean score without the optimizer's worst backbone, where missing cells are
    filled from the additive fit; hyper-parameters count by the mean distance of the tuned values;
    the flag says whether any cell is an outlier; computation is the time relative to the fastest of
    the backbone (on the published tables, whose times are not known, the paper's own rank).

    Returns:
      Index optimizer, best first: overall_rank, overall, performance_rank, performance,
      hyperparameter_rank, hyperparameter_distance, flag, computation_rank, seconds (mean of a run;
      NaN if not known), n (backbones with a score).
    """
    goodness = table.goodness()
    filled = goodness.where(goodness.notna(), _additive(goodness))
    performance = filled.apply(_without_worst, axis=1)
    frame = pandas.DataFrame(
        {
            "performance_rank": _ranks(-performance),
            "performance": table.sign * performance,
            "hyperparameter_rank": np.nan,
            "hyperparameter_distance": np.nan,
            "flag": (outliers.labels == "outlier").any(axis=1).astype(int),
            "computation_rank": np.nan,
            "seconds": np.nan,
            "n": goodness.notna().sum(axis=1),
        }
    )
    if hyperparameters is not None:
        frame["hyperparameter_distance"] = hyperparameters.by_optimizer["mean"].reindex(frame.index)
        frame["hyperparameter_rank"] = _ranks(frame["hyperparameter_distance"])
    seconds = _pivot(table, "wall_seconds")
    if seconds is not None:
        frame["seconds"] = seconds.mean(axis=1)
        frame["computation_rank"] = _ranks((seconds / seconds.min()).mean(axis=1))
    elif table.dataset in ("cifar100", "imagenet", "coco"):
        ranks = paper.table("ranking")["computation_rank"]
        frame["computation_rank"] = ranks.reindex(frame.index).astype(float)
    frame.insert(0, "overall", overall(frame))
    frame.insert(0, "overall_rank", _ranks(frame["overall"].round(9)))
    return frame.sort_values(["overall", "performance_rank"], kind="stable").rename_axis(
        "optimizer"
    )


def _without_worst(scores: pandas.Series) -> float:
    ordered = np.sort(scores.dropna().to_numpy())
    return float(ordered[1:].mean()) if len(ordered) > 2 else float(ordered.mean())


def _ranks(values: pandas.Series) -> pandas.Series:
    return values.rank(method="min")


def _additive(goodness: pandas.DataFrame) -> pandas.DataFrame:
    """Return mean + row effect + column effect, by sweeping means until they converge."""
    left, fit = goodness, 0 * goodness.fillna(0)
    for _ in range(200):
        rows = left.mean(axis=1).fillna(0)
        left, fit = left.sub(rows, axis=0), fit.add(rows, axis=0)
        columns = left.mean(axis=0).fillna(0)
        left, fit = left - columns, fit + columns
        if columns.abs().max() < 1e-10:
            break
    return fit


def _pivot(table: ScoreTable, column: str) -> pandas.DataFrame | None:
    if column not in table.runs or not table.runs[column].notna().any():
        return None
    grid = table.runs.groupby(["optimizer", "backbone"])[column].mean().unstack()
    return grid.reindex(index=table.optimizers, columns=table.backbones)


def profile(table: ScoreTable) -> Profiles:
    """Return on which share of the backbones each optimizer is within tau of the best."""
    matrix, goodness = table.matrix(), table.goodness()
    regret = regret_of(goodness)
    taus = np.linspace(0, _LARGEST_REGRET * (table.default_equal() or 1), _POINTS)
    ratios = np.linspace(1, _LARGEST_RATIO, _POINTS)
    by_regret = _profile(regret, taus)
    errors = {"points": 100 - matrix, "nats": matrix}.get(table.unit)
    by_error = None
    if errors is not None and (errors.min() > 0).all():
        by_error = _profile(errors / errors.min(), ratios)
    seconds = _pivot(table, "seconds_to_target")
    by_time = None
    if seconds is not None:
        # An optimizer that did not reach the target is within no ratio, but counts.
        reached = (seconds / seconds.min()).where(seconds.notna(), np.inf)
        by_time = _profile(reached.where(goodness.notna()), ratios)
    areas: dict[str, Any] = {"n": goodness.notna().sum(axis=1)}
    for name, curve in (("regret", by_regret), ("error_ratio", by_error), ("time_ratio", by_time)):
        areas[name] = np.nan if curve is None else _area(curve)
    return Profiles(
        by_regret=by_regret,
        by_error_ratio=by_error,
        by_time_ratio=by_time,
        scores=pandas.DataFrame(areas).sort_values("regret", ascending=False, kind="stable"),
        backbones=int(goodness.notna().any().sum()),
    )


def _profile(distance: pandas.DataFrame, taus: np.ndarray) -> pandas.DataFrame:
    """Return each optimizer's share of backbones with a distance of at most tau.

    Backbones on which it has no score do not count.
    """
    values = distance.to_numpy()
    known = ~np.isnan(values)
    within = (np.where(known, values, np.inf)[..., None] <= taus + 1e-9).sum(axis=1)
    counts = known.sum(axis=1)[:, None]
    shares = np.where(counts > 0, within / np.maximum(counts, 1), np.nan)
    return pandas.DataFrame(shares.T, index=pandas.Index(taus, name="tau"), columns=distance.index)


def _area(curve: pandas.DataFrame) -> pandas.Series:
    taus = curve.index.to_numpy()
    area = np.trapezoid(curve.to_numpy(), taus, axis=0) / (taus[-1] - taus[0])
    return pandas.Series(area, index=curve.columns)
