"""Every backbone and every optimizer in figures: its share of the coupling, its regrets."""

import dataclasses

import numpy as np
import pandas

from bocb_jax.coupling import decomposition, significance
from bocb_jax.coupling.cells import cells_of_table, resampled_means
from bocb_jax.coupling.costs import far_behind
from bocb_jax.coupling.outliers import MAD_SCALE, Outliers
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.paper.categories import to_opt

# An optimizer fails if its mean regret is this many MADs above the median optimizer's.
FAILING_MADS = 3.0


def failing(regret: pandas.DataFrame, table: ScoreTable) -> tuple[str, ...]:
    """Return the optimizers that fail overall: mean regret above median + 3 x 1.4826 MAD of all.

    The margin is at least `table.within[1]`, and with fewer than five optimizers none fails. On the
    paper's CIFAR-100 table it names AdaGrad and LARS.
    """
    means = regret.mean(axis=1).dropna()
    if len(means) < 5:
        return ()
    mad = MAD_SCALE * (means - means.median()).abs().median()
    limit = means.median() + max(FAILING_MADS * mad, table.within[1])
    return tuple(means.index[means > limit])


def _intervals(table: ScoreTable, axis: str, confidence: float) -> pandas.DataFrame:
    names = table.optimizers if axis == "optimizer" else table.backbones
    frame = decomposition.row_intervals(cells_of_table(table), axis, confidence)
    return frame.set_index(pandas.Index(names, name=axis))


def coupling_by_axis(
    table: ScoreTable, dropped: tuple[str, ...], coupling: pandas.DataFrame, confidence: float
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Return the coupling of every backbone, and that of every optimizer.

    Args:
      table: the scores.
      dropped: optimizers that fail.
      coupling: residuals of the median polish, larger is better.
      confidence: of the intervals.

    Returns:
      Two frames: n, seeds, one_seed_cells, coupling_rms, coupling_rms_low, coupling_rms_high,
      coupling_rms_without_failures (with _low and _high; NaN for the optimizers left out),
      coupling_mad, worst_loss, worst_optimizer or worst_backbone.
    """
    counts = table.counts()
    kept = table.select(optimizers=[o for o in table.optimizers if o not in dropped])
    found = []
    for axis, other in (("backbone", "optimizer"), ("optimizer", "backbone")):
        across = 0 if axis == "backbone" else 1
        full = _intervals(table, axis, confidence).add_prefix("coupling_rms_")
        full = full.rename(columns={"coupling_rms_rms": "coupling_rms"})
        without = _intervals(kept, axis, confidence).add_prefix("coupling_rms_without_failures_")
        without = without.rename(
            columns={"coupling_rms_without_failures_rms": "coupling_rms_without_failures"}
        )
        frame = pandas.DataFrame(
            {
                "n": (counts > 0).sum(axis=across),
                "seeds": counts.where(counts > 0).median(axis=across),
                "one_seed_cells": (counts == 1).sum(axis=across),
            }
        )
        frame = frame.join(full).join(without)
        frame["coupling_mad"] = MAD_SCALE * coupling.abs().median(axis=across)
        frame["worst_loss"] = (-coupling.min(axis=across)).clip(lower=0)
        frame[f"worst_{other}"] = _extreme(coupling, across, smallest=True)
        found.append(frame.rename_axis(axis))
    return found[0], found[1]


def _extreme(values: pandas.DataFrame, axis: int, *, smallest: bool) -> pandas.Series:
    """Return the name of the smallest or largest along an axis; None where all are missing."""
    known = values.notna().any(axis=axis)
    kept = values.loc[:, known] if axis == 0 else values.loc[known]
    names = kept.idxmin(axis=axis) if smallest else kept.idxmax(axis=axis)
    return names.reindex(known.index).astype(object).where(known, None)


def describe_backbones(
    table: ScoreTable,
    frame: pandas.DataFrame,
    regret: pandas.DataFrame,
    apart: pandas.DataFrame | None,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> pandas.DataFrame:
    """Add each backbone's best optimizer, its regrets, and SGD against AdamW.

    Args:
      table: the scores.
      frame: coupling of the backbones, from `coupling_by_axis`.
      regret: from `regret_of`.
      apart: from `significance.against_best`.
      confidence: of the intervals.
      resamples: bootstrap draws over seeds.
      seed: of the draws.
    """
    goodness = table.goodness()
    frame = frame.copy()
    frame["best_optimizer"] = _extreme(goodness, 0, smallest=False)
    frame["best"] = goodness.max() * table.sign
    frame["best_share"] = _best_share(table, frame["best_optimizer"], resamples, seed)
    frame["tied"] = np.nan
    if apart is not None:
        known = apart["p_holm"].notna()
        tied = (apart["p_holm"] >= 1 - confidence)[known].groupby(apart["backbone"]).sum()
        frame["tied"] = tied.reindex(frame.index)
    frame["mean_regret"] = regret.mean()
    frame["median_regret"] = regret.median()
    both = table.runs[table.runs["optimizer"].map(to_opt).isin(("sgd", "adamw"))]
    compared = dataclasses.replace(table, runs=both)
    comparison = [_sgd_against_adamw(compared, name, confidence) for name in frame.index]
    columns = ["sgd_minus_adamw", "sgd_minus_adamw_low", "sgd_minus_adamw_high"]
    frame[columns] = np.array(comparison, float).reshape(len(frame), 3)
    return frame


def _best_share(table: ScoreTable, best: pandas.Series, resamples: int, seed: int) -> pandas.Series:
    """Return in what share of resamples of the seeds the best optimizer stays the best."""
    cells = cells_of_table(table)
    means = resampled_means(cells, resamples, np.random.default_rng(seed))
    shares = pandas.Series(np.nan, index=best.index)
    if means is None:
        return shares
    full = np.full((len(means), *cells.shape), -np.inf)
    full[:, cells.optimizer, cells.backbone] = table.sign * means
    winners = full.argmax(axis=1)
    for column, (backbone, name) in enumerate(best.items()):
        if name is not None:
            shares[backbone] = (winners[:, column] == table.optimizers.index(name)).mean()
    return shares


def _sgd_against_adamw(
    table: ScoreTable, backbone: str, confidence: float
) -> tuple[float, float, float]:
    """Return SGD minus AdamW over seeds, larger is better for SGD, and Welch's interval."""
    runs = table.runs[table.runs["backbone"] == backbone].dropna(subset="score")
    names = runs["optimizer"].map(to_opt)
    sgd, adamw = (
        table.sign * runs.loc[names == opt, "score"].to_numpy(float) for opt in ("sgd", "adamw")
    )
    if not len(sgd) or not len(adamw):
        return np.nan, np.nan, np.nan
    low, high, _ = significance.welch(sgd, adamw, confidence)
    return sgd.mean() - adamw.mean(), low, high


def describe_optimizers(
    table: ScoreTable,
    frame: pandas.DataFrame,
    regret: pandas.DataFrame,
    outliers: Outliers,
    categories: pandas.Series,
    families: pandas.Series,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> pandas.DataFrame:
    """Add each optimizer's regret, with an interval over families of backbones.

    Args:
      table: the scores.
      frame: coupling of the optimizers, from `coupling_by_axis`.
      regret: from `regret_of`.
      outliers: of the table.
      categories: of every optimizer.
      families: of every backbone.
      confidence: of the intervals.
      resamples: bootstrap draws of whole families.
      seed: of the draws.
    """
    frame = frame.copy()
    frame["mean_score"] = table.matrix().mean(axis=1)
    frame["mean_regret"] = regret.mean(axis=1)
    bounds = _mean_over_families(regret, families, confidence, resamples, seed)
    frame["mean_regret_low"], frame["mean_regret_high"] = bounds
    frame["median_regret"] = regret.median(axis=1)
    frame["worst_regret"] = regret.max(axis=1)
    limits = {
        "within": regret <= table.equal + 1e-9,
        "beyond": far_behind(regret, table.equal),
    }
    for column, found in limits.items():
        frame[column] = [tuple(found.columns[found.loc[name]]) for name in frame.index]
    frame["outliers"] = (outliers.labels == "outlier").sum(axis=1)
    frame["failed"] = table.failed().sum(axis=1)
    frame["category"] = categories.reindex(frame.index)
    return frame


def _mean_over_families(
    regret: pandas.DataFrame, families: pandas.Series, confidence: float, resamples: int, seed: int
) -> tuple[np.ndarray | float, np.ndarray | float]:
    """Return percentiles of every row's mean when families of columns are resampled."""
    members = pandas.get_dummies(families.reindex(regret.columns)).to_numpy(float)
    number = members.shape[1]
    if number < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(number, np.full(number, 1 / number), size=resamples) @ members.T
    values = regret.to_numpy()
    weights = draws @ (~np.isnan(values)).T.astype(float)
    sums = draws @ np.nan_to_num(values).T
    means = np.where(weights > 0, sums / np.maximum(weights, 1), np.nan)
    tail = (1 - confidence) / 2
    some = ~np.isnan(means).all(axis=0)
    bounds = np.full((2, len(values)), np.nan)
    bounds[:, some] = np.nanquantile(means[:, some], [tail, 1 - tail], axis=0)
    return bounds[0], bounds[1]
