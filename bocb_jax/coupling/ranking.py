"""Optimizers in order: the paper's weighted ranking, and performance profiles."""

import dataclasses

import numpy as np
import pandas

from bocb_jax import paper
from bocb_jax.coupling.outliers import Marks
from bocb_jax.coupling.scores import ScoreTable
from bocb_jax.coupling.tuning import Hyperparameters

# The weights of the paper's Table 4.
WEIGHTS = {
    "performance_rank": 0.4,
    "hyperparameter_rank": 0.2,
    "flag": 0.2,
    "computation_rank": 0.2,
}
_LARGEST_REGRET = {"points": 10.0, "log-odds": 0.5, "nats": 0.5}
_LARGEST_RATIO = 4.0  # as in AlgoPerf
_POINTS = 201


@dataclasses.dataclass(frozen=True)
class Profiles:
    """Performance profiles (Dolan & More 2002; Dahl et al. 2023): share of backbones within tau.

    A score is the area under a profile up to the largest tau shown, divided by its width.
    """

    by_regret: pandas.DataFrame  # index tau in the unit of the score, columns optimizers
    by_error_ratio: pandas.DataFrame | None  # index tau, error over the column's lowest error
    by_time_ratio: pandas.DataFrame | None  # index tau, seconds to target over the fastest
    # index optimizer: n (backbones with a score), regret, error_ratio, time_ratio: area, 0 to 1
    scores: pandas.DataFrame
    backbones: int


def overall(components: pandas.DataFrame) -> pandas.Series:
    """Weighted sum of ranks as in the paper's Table 4, smaller is better.

    The flag counts as the bare 0 or 1 that the paper uses, so next to ranks up to 20 it hardly
    counts. A component that is missing for all is left out and the other weights grow.
    """
    present = [name for name in WEIGHTS if components[name].notna().all()]
    weights = pandas.Series(WEIGHTS)[present]
    return (components[present] * weights).sum(axis=1) / weights.sum()


def rank(
    table: ScoreTable, marks: Marks, hyperparameters: Hyperparameters | None
) -> pandas.DataFrame:
    """The paper's ranking of optimizers, from a table's own figures.

    Performance is the mean score without the optimizer's worst backbone, a missing cell being
    filled from the additive fit; hyper-parameters the mean distance of its tuned values; the flag
    whether any of its cells is marked; computation its time relative to the fastest
    of the backbone (on the published tables, whose times are not known, the paper's own rank).

    Returns:
      index optimizer, best first: overall_rank, overall, performance_rank, performance,
      hyperparameter_rank, hyperparameter_distance, flag, computation_rank, seconds (mean of a run;
      NaN if not known), n (backbones with a score).
    """
    sign = 1 if table.higher_is_better else -1
    matrix = table.matrix()
    goodness = sign * matrix
    filled = goodness.where(goodness.notna(), _additive(goodness))
    performance = filled.apply(_without_worst, axis=1)
    frame = pandas.DataFrame(
        {
            "performance_rank": _ranks(-performance),
            "performance": sign * performance,
            "hyperparameter_rank": np.nan,
            "hyperparameter_distance": np.nan,
            "flag": (marks.marks == "outlier").any(axis=1).astype(int),
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
        printed = paper.table("ranking")["computation_rank"]
        frame["computation_rank"] = printed.reindex(frame.index).astype(float)
    frame.insert(0, "overall", overall(frame))
    frame.insert(0, "overall_rank", _ranks(frame["overall"].round(9)))
    return frame.sort_values(["overall", "performance_rank"], kind="stable").rename_axis(
        "optimizer"
    )


def _without_worst(scores: pandas.Series) -> float:
    scores = np.sort(scores.dropna().to_numpy())
    return float(scores[1:].mean()) if len(scores) > 2 else float(scores.mean())


def _ranks(values: pandas.Series) -> pandas.Series:
    return values.rank(method="min")


def _additive(goodness: pandas.DataFrame) -> pandas.DataFrame:
    """Mean + row effect + column effect, by sweeping means until they settle."""
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
    """On which share of the backbones each optimizer is within tau of the best."""
    sign = 1 if table.higher_is_better else -1
    matrix = table.matrix()
    goodness = sign * matrix
    regret = goodness.max() - goodness
    taus = np.linspace(0, _LARGEST_REGRET[table.unit], _POINTS)
    ratios = np.linspace(1, _LARGEST_RATIO, _POINTS)
    by_regret = _profile(regret, taus)
    errors = {"points": 100 - matrix, "nats": matrix}.get(table.unit)
    by_error = None
    if errors is not None and (errors.min() > 0).all():
        by_error = _profile(errors / errors.min(), ratios)
    seconds = _pivot(table, "seconds_to_target")
    by_time = None
    if seconds is not None:
        # Who did not reach the target is never within any ratio, but counts.
        reached = (seconds / seconds.min()).where(seconds.notna(), np.inf)
        by_time = _profile(reached.where(goodness.notna()), ratios)
    areas = {"n": goodness.notna().sum(axis=1)}
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
    """Share of an optimizer's backbones no farther than tau; backbones without a score are out."""
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
