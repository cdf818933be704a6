"""Two-way decomposition of scores into backbone, optimizer, their interaction and noise.

Least squares gives the shares and their tests. Median polish gives the picture, because there one
failed cell does not bend its row and its column.
"""

import dataclasses

import numpy as np
import pandas

from bocb_jax.coupling import noncentral
from bocb_jax.coupling.cells import Cells, cells_of_table, noise_variance, resampled_means
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.coupling.significance import Tukey, interaction_permutation_test, tukey_test

_SYSTEMATIC = ["optimizer", "backbone", "interaction"]


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """score = mean + optimizer + backbone + interaction + noise, by least squares."""

    # Index: "optimizer", "backbone", "interaction" and, with seeds, "noise". Columns:
    # sum_of_squares (type II), degrees_of_freedom, mean_square, f, p_value;
    # share (of the three systematic terms, noise subtracted where it is known), share_low,
    # share_high (bootstrap over seeds), share_of_means (noise not subtracted);
    # omega_squared (of all variance, noise included); partial_omega_squared with _low and _high
    # (noncentral F). NaN where one seed per cell cannot give it.
    terms: pandas.DataFrame
    mean: float
    optimizer_effects: pandas.Series  # deviations from the mean, in the unit
    backbone_effects: pandas.Series
    interaction: pandas.DataFrame  # residuals of the additive fit, optimizers x backbones
    interaction_std: float  # root mean square of the interaction, noise subtracted if known
    interaction_std_low: float | None  # of its interval; None without seeds
    interaction_std_high: float | None
    noise_std: float | None  # between seeds within a cell; None without seeds
    permutation_p: float | None  # Freedman-Lane; None without seeds
    permutations: int
    tukey: Tukey | None  # None where the table is too small
    runs: int
    cells: int  # with a score
    replicated_cells: int  # with two or more
    missing_cells: int
    dropped: tuple[str, ...]  # optimizers left out of this decomposition


def sums_of_squares(cells: Cells) -> dict[str, float]:
    """Return type II sums of squares of optimizer, backbone, interaction and noise, over runs."""
    means = cells.means(cells.values)
    residuals = cells.interaction(means)
    interaction = float((cells.counts * residuals**2).sum())
    noise = float(((cells.values - np.repeat(means, cells.counts)) ** 2).sum())

    def gain_over(group: np.ndarray) -> float:
        # What a term adds to the fit of the other term, whose levels `group` holds, alone.
        totals = np.bincount(group, cells.counts)
        centers = np.bincount(group, cells.counts * means) / np.where(totals > 0, totals, 1)
        return float((cells.counts * (means - centers[group]) ** 2).sum()) - interaction

    return {
        "optimizer": max(gain_over(cells.backbone), 0.0),
        "backbone": max(gain_over(cells.optimizer), 0.0),
        "interaction": interaction,
        "noise": noise,
    }


def decompose(
    table: ScoreTable,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    dropped: tuple[str, ...] = (),
) -> Decomposition | None:
    """Decompose the scores of a table.

    Args:
      table: the scores.
      confidence: of the intervals.
      resamples: bootstrap draws over seeds, and permutations.
      seed: of the draws.
      dropped: optimizers to leave out.

    Returns:
      None for fewer than two optimizers or two backbones.
    """
    kept = [name for name in table.optimizers if name not in dropped]
    table = table.select(optimizers=kept) if dropped else table
    cells = cells_of_table(table)
    if min(len(np.unique(cells.optimizer)), len(np.unique(cells.backbone))) < 2:
        return None
    rng = np.random.default_rng(seed)
    noise = noise_variance(cells)
    terms = _terms(cells, noise, confidence)
    draws = resampled_means(cells, resamples, rng)
    if draws is not None and noise is not None:
        terms = _with_share_intervals(terms, cells, draws, noise, confidence)
    size, low, high = _interaction_std(cells, terms, noise, confidence)
    mean, rows, columns = cells.effects()
    observed = cells.grid(cells.means(cells.values))
    backbones = pandas.Index(table.backbones, name="backbone")
    optimizers = pandas.Index(table.optimizers, name="optimizer")
    return Decomposition(
        terms=terms,
        mean=mean,
        optimizer_effects=pandas.Series(rows, index=optimizers),
        backbone_effects=pandas.Series(columns, index=backbones),
        interaction=pandas.DataFrame(
            observed - (mean + rows[:, None] + columns), index=optimizers, columns=backbones
        ),
        interaction_std=size,
        interaction_std_low=low,
        interaction_std_high=high,
        noise_std=None if noise is None else float(np.sqrt(noise)),
        permutation_p=interaction_permutation_test(cells, resamples, rng),
        permutations=resamples if noise is not None else 0,
        tukey=tukey_test(cells),
        runs=len(cells.values),
        cells=len(cells.counts),
        replicated_cells=int((cells.counts > 1).sum()),
        missing_cells=int(np.prod(cells.shape)) - len(cells.counts),
        dropped=tuple(dropped),
    )


def shares(table: ScoreTable, failing: tuple[str, ...]) -> pandas.DataFrame:
    """Return how much of the variance optimizer, backbone and their interaction make up.

    In the unit of the table and, for accuracies, in log-odds as well, because a point near 99
    percent is more than one near 60; with the optimizers that fail and without, because one that
    fails on some backbones makes most of the interaction. None of the four is the true one. Only
    finished runs have a score and count.

    Args:
      table: the scores.
      failing: optimizers that fail.

    Returns:
      A row for each scale and, where an optimizer fails, for each of failing = "in" and "out":
      scale (unit), failing, optimizer, backbone, interaction (type II sums of squares as shares of
      their sum, noise subtracted where it is known), cells (with a score), dropped (optimizers left
      out, a tuple). Empty for fewer than two optimizers or two backbones.
    """
    rows = []
    scales = [table, table.log_odds()] if table.is_accuracy else [table]
    for scaled in scales:
        for out in (False, True) if failing else (False,):
            dropped = failing if out else ()
            kept = scaled.select(optimizers=[o for o in table.optimizers if o not in dropped])
            cells = cells_of_table(kept)
            if min(len(np.unique(cells.optimizer)), len(np.unique(cells.backbone))) < 2:
                continue
            noise, degrees = _known_noise(kept, cells), _degrees(cells)
            squares = sums_of_squares(cells)
            true = np.array([max(squares[n] - degrees[n] * noise, 0.0) for n in _SYSTEMATIC])
            parts = true / true.sum() if true.sum() > 0 else np.full(3, np.nan)
            row = {"scale": scaled.unit, "failing": "out" if out else "in"}
            row |= dict(zip(_SYSTEMATIC, parts, strict=True))
            rows.append(row | {"cells": len(cells.counts), "dropped": dropped})
    return pandas.DataFrame(rows, columns=["scale", "failing", *_SYSTEMATIC, "cells", "dropped"])


def _known_noise(table: ScoreTable, cells: Cells) -> float:
    """Return the variance of one run, from seeds or else as the table gives it; 0 if not known."""
    pooled = noise_variance(cells)
    if pooled is not None:
        return pooled
    given = table.figure_noise().dropna()
    return float((given**2).mean()) if len(given) else 0.0


def _interaction_std(
    cells: Cells, terms: pandas.DataFrame, noise: float | None, confidence: float
) -> tuple[float, float | None, float | None]:
    """Return the root mean square of the interaction and its interval, None without seeds."""
    between, within = cells.degrees_of_freedom
    runs = len(cells.values)
    squares = terms.loc["interaction", "sum_of_squares"]
    size = float(np.sqrt(max(squares - between * (noise or 0.0), 0.0) / runs))
    if not noise or between == 0:
        return size, None, None
    bounds = noncentral.sum_of_squares_interval(squares, noise, between, within, confidence)
    return size, float(np.sqrt(bounds[0] / runs)), float(np.sqrt(bounds[1] / runs))


def _terms(cells: Cells, noise: float | None, confidence: float) -> pandas.DataFrame:
    """Return `Decomposition.terms` without the intervals of the shares."""
    squares, degrees = sums_of_squares(cells), _degrees(cells)
    within, runs = degrees["noise"], len(cells.values)
    if noise is None:
        del squares["noise"]
    terms = pandas.DataFrame(
        {"sum_of_squares": squares, "degrees_of_freedom": {name: degrees[name] for name in squares}}
    )
    used = terms.loc[_SYSTEMATIC, "degrees_of_freedom"]
    terms["mean_square"] = terms["sum_of_squares"] / terms["degrees_of_freedom"].where(
        lambda d: d > 0
    )
    columns = ["f", "p_value", "share", "share_low", "share_high", "share_of_means"]
    columns += ["omega_squared", *(f"partial_omega_squared{end}" for end in ("", "_low", "_high"))]
    terms[columns] = np.nan
    raw = terms.loc[_SYSTEMATIC, "sum_of_squares"]
    true = (raw - used * (noise or 0.0)).clip(lower=0)
    terms.loc[_SYSTEMATIC, "share_of_means"] = raw / raw.sum() if raw.sum() > 0 else np.nan
    terms.loc[_SYSTEMATIC, "share"] = true / true.sum() if true.sum() > 0 else np.nan
    if noise is not None:
        _add_tests(terms, noise, within, runs, confidence)
    return terms


def _degrees(cells: Cells) -> dict[str, int]:
    """Return the degrees of freedom of the terms."""
    between, within = cells.degrees_of_freedom
    return {
        "optimizer": cells.rank - len(np.unique(cells.backbone)),
        "backbone": cells.rank - len(np.unique(cells.optimizer)),
        "interaction": between,
        "noise": within,
    }


def _add_tests(
    terms: pandas.DataFrame, noise: float, within: int, runs: int, confidence: float
) -> None:
    """Fill in F, p-value and effect sizes of the systematic terms.

    Args:
      terms: of the decomposition; changed in place.
      noise: variance within cells.
      within: its degrees of freedom.
      runs: of the table.
      confidence: of the intervals.
    """
    total = terms["sum_of_squares"].sum()
    for name in _SYSTEMATIC:
        square, df = terms.loc[name, ["sum_of_squares", "degrees_of_freedom"]]
        if df < 1 or not total > 0:
            continue
        surplus = square - df * noise
        terms.loc[name, "omega_squared"] = max(surplus / (total + noise), 0.0)
        if noise > 0:  # seeds that agree exactly do not tell the noise
            f = square / df / noise
            terms.loc[name, "f"] = f
            terms.loc[name, "p_value"] = noncentral.f_p_value(f, df, within)
            terms.loc[name, "partial_omega_squared"] = max(surplus / (surplus + runs * noise), 0.0)
            low, high = noncentral.f_interval(f, df, within, confidence)
            terms.loc[name, "partial_omega_squared_low"] = low / (low + runs)
            terms.loc[name, "partial_omega_squared_high"] = high / (high + runs)


def _with_share_intervals(
    terms: pandas.DataFrame, cells: Cells, draws: np.ndarray, noise: float, confidence: float
) -> pandas.DataFrame:
    """Fill in percentiles of the shares over (resamples, cells) means of resampled seeds."""
    degrees = terms.loc[_SYSTEMATIC, "degrees_of_freedom"].to_numpy(float)
    residuals = cells.interaction(draws)
    squares = {"interaction": (cells.counts * residuals**2).sum(axis=1)}
    for name, group in (("optimizer", cells.backbone), ("backbone", cells.optimizer)):
        members = np.zeros((len(group), group.max() + 1))
        members[np.arange(len(group)), group] = cells.counts
        totals = members.sum(axis=0)
        centers = (draws @ members) / np.where(totals > 0, totals, 1)
        around = (cells.counts * (draws - centers[:, group]) ** 2).sum(axis=1)
        squares[name] = around - squares["interaction"]
    # The means contain noise, and resampling seeds adds it a second time.
    true = np.stack([squares[name] for name in _SYSTEMATIC], axis=1) - 2 * degrees * noise
    true = np.clip(true, 0, None)
    shares = true / np.maximum(true.sum(axis=1, keepdims=True), 1e-300)
    tail = (1 - confidence) / 2
    terms.loc[_SYSTEMATIC, "share_low"] = np.quantile(shares, tail, axis=0)
    terms.loc[_SYSTEMATIC, "share_high"] = np.quantile(shares, 1 - tail, axis=0)
    return terms


def row_intervals(cells: Cells, axis: str, confidence: float) -> pandas.DataFrame:
    """Return the root mean square of the interaction of each optimizer or each backbone.

    Args:
      cells: the table.
      axis: "optimizer" or "backbone".
      confidence: of the interval.

    Returns:
      A row for each; columns rms (noise subtracted), low, high (NaN without seeds). The noise is
      pooled over all cells.
    """
    group = cells.optimizer if axis == "optimizer" else cells.backbone
    size = cells.shape[axis == "backbone"]
    residuals = cells.interaction(cells.means(cells.values))
    # The additive fit absorbs a share of each cell's noise: its leverage.
    left = 1 - cells.leverage
    squares = np.bincount(group, cells.counts * residuals**2, size)
    expected = np.bincount(group, left, size)
    runs = np.bincount(group, cells.counts, size)
    within = cells.degrees_of_freedom[1]
    noise = noise_variance(cells)
    rows = []
    for square, degrees, count, members in zip(
        squares, expected, runs, np.bincount(group, minlength=size), strict=True
    ):
        if count == 0 or members < 2:
            rows.append((np.nan, np.nan, np.nan))
        elif not noise or degrees < 1e-9:
            rows.append((np.sqrt(square / count), np.nan, np.nan))
        else:
            scale = degrees / (members - 1)
            bounds = noncentral.sum_of_squares_interval(
                square / scale, noise, members - 1, within, confidence
            )
            true = max(square - degrees * noise, 0.0)
            rows.append(
                (np.sqrt(true / count), *(np.sqrt(scale * bound / count) for bound in bounds))
            )
    return pandas.DataFrame(rows, columns=["rms", "low", "high"])


def median_polish(matrix: pandas.DataFrame, *, sweeps: int = 100) -> pandas.DataFrame:
    """Return the residuals of a table after its row and column medians are removed in turn.

    Tukey (1977), rows first. Missing cells stay missing. Unlike the means of least squares, medians
    are not drawn to a failed cell: its whole loss stays in its own residual.

    Args:
      matrix: optimizers x backbones.
      sweeps: at most so many, each over rows and columns.
    """
    left = matrix.to_numpy(float)
    # A row without any score has no median.
    rows, columns = ~np.isnan(left).all(axis=1), ~np.isnan(left).all(axis=0)
    left = left[np.ix_(rows, columns)]
    for _ in range(sweeps if left.size else 0):
        before = left
        left = left - np.nanmedian(left, axis=1, keepdims=True)
        left = left - np.nanmedian(left, axis=0, keepdims=True)
        if np.nanmax(np.abs(left - before)) < 1e-9:
            break
    polished = pandas.DataFrame(np.nan, index=matrix.index, columns=matrix.columns)
    polished.iloc[np.flatnonzero(rows), np.flatnonzero(columns)] = left
    return polished
