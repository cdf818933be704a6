"""Tuning: how far the best values move, what more trials gain, how wide the good region is."""

import dataclasses

import numpy as np
import pandas
from scipy import stats

from bocb_jax.coupling import trials as trial_scores
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.coupling.trials import Fading

_TUNED = ("learning_rate", "weight_decay")
# With more distinct values it was a random search, where distances are in factors of two.
_LARGEST_GRID = 10


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Ordinal distance of tuned learning rates and weight decays to an optimizer's usual ones."""

    distances: pandas.DataFrame  # optimizers x backbones: steps in learning rate + weight decay
    learning_rate_steps: pandas.DataFrame
    weight_decay_steps: pandas.DataFrame
    # Index backbone and index optimizer: n, mean, q1, median, q3, max.
    by_backbone: pandas.DataFrame
    by_optimizer: pandas.DataFrame
    modes: pandas.DataFrame  # index optimizer: learning_rate, weight_decay, n
    description: str


@dataclasses.dataclass(frozen=True)
class Budget:
    """Scores and coupling against the number of trials (expected best of k)."""

    # backbone, optimizer, trials (k), expected_best, standard_error, n (trials recorded).
    curves: pandas.DataFrame
    # Index trials (k): interaction_std (noise of the best of k subtracted), interaction_share (of
    # all variance but noise), noise_std (of the expected best), mean_regret, cells.
    coupling: pandas.DataFrame
    fading: Fading | None  # None where too few pairs have two trials
    verdict: str  # the same in words
    # backbone, optimizer, learning_rate, weight_decay, score, best, gap: the score with the values
    # that lose least on the other backbones ("defaults"), and how far it is behind the best.
    defaults: pandas.DataFrame | None
    # Mean of (winner's score in the search - score of fresh seeds on the same split), in the unit.
    optimism: float | None
    optimism_low: float | None
    optimism_high: float | None
    optimism_cells: int


def tuned_values_of(table: ScoreTable) -> pandas.DataFrame:
    """Return the tuned values of a table's pairs, which are those of its final runs.

    Returns:
      Columns optimizer, backbone, learning_rate, weight_decay; one row a pair.
    """
    frame = table.runs[["optimizer", "backbone", *_TUNED]].dropna(subset=list(_TUNED))
    return frame.drop_duplicates(["optimizer", "backbone"])


def distances(
    tuned: pandas.DataFrame,
    *,
    center: str = "mode",
    trials: pandas.DataFrame | None = None,
) -> Hyperparameters | None:
    """Measure how far each pair's tuned values are from the optimizer's usual ones, in steps.

    A step is one position in the sorted list of values: those tried for the optimizer or, where the
    search was not recorded, those that won. The paper speaks of one-hot codes, but its box plots
    contain odd distances, which one-hot codes cannot give.

    Args:
      tuned: optimizer, backbone, learning_rate, weight_decay; one row a pair.
      center: "mode" (the paper's text; among ties the one with the least mean distance) or "median"
        (closer to the paper's box plots).
      trials: the search's runs.

    Returns:
      None without tuned values of two backbones.
    """
    if tuned["backbone"].nunique() < 2:
        return None
    optimizers = pandas.unique(tuned["optimizer"])
    empty = pandas.DataFrame(np.nan, index=optimizers, columns=pandas.unique(tuned["backbone"]))
    empty = empty.rename_axis("optimizer").rename_axis("backbone", axis=1)
    steps = {name: empty.copy() for name in _TUNED}
    modes = pandas.DataFrame(np.nan, index=empty.index, columns=[*_TUNED, "n"])
    for optimizer, rows in tuned.groupby("optimizer", sort=False):
        for name in _TUNED:
            values = rows[name].to_numpy(float)
            tried = values
            if trials is not None:
                own = trials.loc[trials["optimizer"] == optimizer, name].dropna().to_numpy(float)
                tried = np.concatenate([values, own])
            codes = _positions(values, np.unique(tried))
            middle = _center(codes, center)
            modes.loc[optimizer, name] = values[np.abs(codes - middle).argmin()]
            steps[name].loc[optimizer, rows["backbone"]] = np.abs(codes - middle)
        modes.loc[optimizer, "n"] = len(rows)
    total = steps["learning_rate"] + steps["weight_decay"]
    return Hyperparameters(
        distances=total,
        learning_rate_steps=steps["learning_rate"],
        weight_decay_steps=steps["weight_decay"],
        by_backbone=_summary(total),
        by_optimizer=_summary(total.T),
        modes=modes.astype({"n": int}),
        description=(
            "Steps in the sorted list of values between a pair's best learning rate and the "
            f"optimizer's {center}, plus the same for weight decay."
        ),
    )


def _positions(values: np.ndarray, tried: np.ndarray) -> np.ndarray:
    """Return the positions of values among the sorted tried ones, or their logarithms to base 2."""
    if len(tried) <= _LARGEST_GRID:
        return np.searchsorted(tried, values).astype(float)
    positive = tried[tried > 0]
    lowest = np.log2(positive.min()) - 1 if len(positive) else 0.0
    return np.where(values > 0, np.log2(np.where(values > 0, values, 1)), lowest)


def _center(codes: np.ndarray, center: str) -> float:
    if center == "median":
        return float(np.median(codes))
    rounded = np.round(codes)
    distinct, counts = np.unique(rounded, return_counts=True)
    tied = distinct[counts == counts.max()]
    return float(min(tied, key=lambda value: np.abs(codes - value).mean()))


def _summary(grid: pandas.DataFrame) -> pandas.DataFrame:
    return pandas.DataFrame(
        {
            "n": grid.notna().sum(),
            "mean": grid.mean(),
            "q1": grid.quantile(0.25),
            "median": grid.median(),
            "q3": grid.quantile(0.75),
            "max": grid.max(),
        }
    )


def best_at(table: ScoreTable, trials: int) -> pandas.DataFrame | None:
    """Return what a search of so many trials can be expected to reach with every pair.

    Args:
      table: the scores, with trials.
      trials: of each pair; a pair that has fewer gets the best of all it has.

    Returns:
      A row a pair: backbone, optimizer, trials (at most those asked for), expected_best (in the
      unit), standard_error (over trials), n (trials recorded, diverged ones included). None without
      trials.
    """
    curves = _curves(table, seed=0)[0]
    if curves.empty:
        return None
    wanted = curves["trials"] == curves["n"].clip(upper=max(trials, 1))
    return curves[wanted].reset_index(drop=True)


def _curves(
    table: ScoreTable, seed: int
) -> tuple[pandas.DataFrame, dict[tuple[str, str], np.ndarray], dict[tuple[str, str], np.ndarray]]:
    """Return `Budget.curves`, and by pair the expected bests and their deviations by noise."""
    rng = np.random.default_rng(seed)
    noise = trial_scores.noise_of_trials(table)
    curves, deviations, parts = {}, {}, []
    for (optimizer, backbone), scores in trial_scores.goodness_of_pairs(table).items():
        pair, n = (optimizer, backbone), len(scores)
        own = None if noise is None else float(noise[0][backbone])
        curves[pair] = trial_scores.expected_best(scores)
        deviations[pair] = trial_scores.deviations(scores, own, trial_scores.DRAWS, rng)
        parts.append(
            pandas.DataFrame(
                {
                    "backbone": backbone,
                    "optimizer": optimizer,
                    "trials": np.arange(1, n + 1),
                    "expected_best": table.sign * curves[pair],
                    "standard_error": deviations[pair].std(axis=0, ddof=1),
                    "n": n,
                }
            )
        )
    frame = pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame()
    return frame, curves, deviations


def budget(table: ScoreTable, *, confidence: float = 0.95, seed: int = 0) -> Budget | None:
    """Measure what more trials gain, and how much coupling they leave.

    Coupling that fades with the number of trials is a cost of tuning; coupling that stays is a
    ceiling. Scores are those of the search: of one seed, on the validation split.

    Args:
      table: the scores, with trials.
      confidence: of the intervals.
      seed: of the bootstrap over trials.

    Returns:
      None if no pair has two trials with a score.
    """
    if table.trials is None:
        return None
    frame, curves, deviations = _curves(table, seed)
    if max(map(len, curves.values()), default=0) < 2:
        return None
    coupling, fading = _coupling_by_trials(
        curves, deviations, trial_scores.noise_of_trials(table), confidence
    )
    optimism, low, high, cells = _optimism(table, table.trials, confidence)
    return Budget(
        curves=frame,
        coupling=coupling,
        fading=fading,
        verdict=_verdict(coupling, fading, table),
        defaults=_defaults(table.trials, table.sign),
        optimism=optimism,
        optimism_low=low,
        optimism_high=high,
        optimism_cells=cells,
    )


def _coupling_by_trials(
    curves: dict[tuple[str, str], np.ndarray],
    deviations: dict[tuple[str, str], np.ndarray],
    noise_of_seeds: tuple[pandas.Series, float] | None,
    confidence: float,
) -> tuple[pandas.DataFrame, Fading | None]:
    """Return `Budget.coupling` for every k that nine in ten pairs reach, and whether it fades."""
    lengths = np.array([len(curve) for curve in curves.values()])
    most = int(np.quantile(lengths, 0.1, method="lower"))
    # Only backbones and optimizers with all their cells, so that means stay comparable.
    long = pandas.Series({pair: len(curve) for pair, curve in curves.items() if len(curve) >= most})
    grid = long.unstack()
    grid = grid.loc[:, grid.notna().mean() > 0.5].dropna(axis=0)
    if min(grid.shape) < 2:
        return pandas.DataFrame(), None
    pairs = [(optimizer, backbone) for optimizer in grid.index for backbone in grid.columns]
    values = np.stack([curves[pair][:most] for pair in pairs], axis=-1).reshape(most, *grid.shape)
    variances = np.stack([deviations[pair][:, :most].var(axis=0) for pair in pairs]).mean(axis=0)
    rows, columns = grid.shape
    free = (rows - 1) * (columns - 1) / (rows * columns)
    squares = (trial_scores.center_twice(values) ** 2).mean(axis=(1, 2))
    true = (squares - free * variances).clip(min=0)
    total = (values - values.mean(axis=(1, 2), keepdims=True)).var(axis=(1, 2))
    others = (total - squares - variances * (1 - free - 1 / values[0].size)).clip(min=0)
    coupling = pandas.DataFrame(
        {
            "interaction_std": np.sqrt(true),
            "interaction_share": true / np.where(true + others > 0, true + others, np.nan),
            "noise_std": np.sqrt(variances),
            "mean_regret": (values.max(axis=1, keepdims=True) - values).mean(axis=(1, 2)),
            "cells": values[0].size,
        },
        index=pandas.RangeIndex(1, most + 1, name="trials"),
    )
    if most < 2:
        return coupling, None
    ends = [0, most - 1]
    noise = np.stack([deviations[pair][:, ends] for pair in pairs], axis=-1)
    noise = noise.reshape(len(noise), 2, *grid.shape)
    # The best of a resample tells about half as much of its variance as the mean does.
    degrees = sum(len(curves[pair]) - 1 for pair in pairs) / 2
    if noise_of_seeds is not None:
        degrees = noise_of_seeds[1]
    rng = np.random.default_rng(0)
    return coupling, trial_scores.fading(values[ends], noise, degrees, confidence, rng)


def _verdict(coupling: pandas.DataFrame, fading: Fading | None, table: ScoreTable) -> str:
    if fading is None:
        return "Too few trials in common to tell a cost of tuning from a ceiling."
    first, last = table.distances(coupling["interaction_std"].iloc[[0, -1]])
    unit = table.distance_unit
    figures = (
        f"from {first:.2f} {unit} with 1 trial to {last:.2f} with {coupling.index[-1]} "
        f"(noise subtracted, n = {coupling['cells'].iloc[-1]:.0f} cells)"
    )
    if fading.outcome == "cost of tuning":
        return f"Most of the coupling is a cost of tuning: it falls {figures}."
    if fading.outcome == "ceiling":
        moves = "grows" if last > 1.2 * first else "stays"
        return f"The coupling is a ceiling that tuning does not lift: it {moves}, {figures}."
    if fading.outcome == "both":
        return f"The coupling is partly a cost of tuning and partly a ceiling: it falls {figures}."
    return (
        "Whether the coupling is a cost of tuning or a ceiling is undecided: these trials give "
        f"{first:.2f} {unit} with 1 trial and {last:.2f} with {coupling.index[-1]} "
        f"(noise subtracted, n = {coupling['cells'].iloc[-1]:.0f} cells)."
    )


def _defaults(trials: pandas.DataFrame, sign: int) -> pandas.DataFrame | None:
    """Return each pair's score with the values that lose least on the other backbones."""
    trials = trials.dropna(subset=["score", *_TUNED])
    rows = []
    for optimizer, own in trials.groupby("optimizer", sort=False):
        grid = sign * own.groupby([*_TUNED, "backbone"])["score"].mean().unstack()
        if grid.shape[1] < 2:
            continue
        scores = grid.to_numpy()
        best = np.nanmax(scores, axis=0)
        tried = ~np.isnan(scores)
        losses = np.where(tried, best - scores, 0)
        # Sums over all columns but the column itself.
        others = tried.sum(axis=1, keepdims=True) - tried
        means = (losses.sum(axis=1, keepdims=True) - losses) / np.maximum(others, 1)
        # Tried on this backbone, and on most of the others.
        usable = tried & (others > 0.5 * (scores.shape[1] - 1))
        chosen = np.where(usable, means, np.inf).argmin(axis=0)
        for column in np.flatnonzero(usable.any(axis=0)):
            row = chosen[column]
            score = scores[row, column]
            figures = sign * score, sign * best[column], best[column] - score
            rows.append((grid.columns[column], optimizer, *grid.index[row], *figures))
    columns = ["backbone", "optimizer", *_TUNED, "score", "best", "gap"]
    return pandas.DataFrame(rows, columns=columns) if rows else None


def _optimism(
    table: ScoreTable, trials: pandas.DataFrame, confidence: float
) -> tuple[float | None, float | None, float | None, int]:
    """Return the mean optimism of the search, its interval, and the cells behind it."""
    pair = ["optimizer", "backbone"]
    searched = (table.sign * trials["score"]).groupby([trials[name] for name in pair]).max()
    runs = table.runs.dropna(subset="validation_score")
    fresh = (table.sign * runs["validation_score"]).groupby([runs[name] for name in pair]).mean()
    excess = (searched - fresh).dropna().to_numpy()
    if len(excess) == 0 or table.score == "train loss":
        return None, None, None, 0
    if len(excess) == 1:
        return float(excess.mean()), None, None, 1
    reach = stats.t.ppf((1 + confidence) / 2, len(excess) - 1) * stats.sem(excess)
    mean = excess.mean()
    return float(mean), float(mean - reach), float(mean + reach), len(excess)


def width(table: ScoreTable) -> pandas.DataFrame | None:
    """Count, for each pair, the trials that are about as good as the best.

    The share depends on the search space: a wider search has a smaller share.

    Returns:
      A row per pair: backbone, optimizer, trials, within (trials at most `table.within[0]` behind
      the best), share, learning_rate_low, learning_rate_high (of these), learning_rate_factor
      (their ratio), best_learning_rate, best_weight_decay, at_edge (the best is at the lowest or
      highest learning rate or weight decay of three or more tried). None without trials.
    """
    if table.trials is None:
        return None
    rows = []
    trials = table.trials.dropna(subset=["score", "learning_rate"])
    for (backbone, optimizer), own in trials.groupby(["backbone", "optimizer"], sort=False):
        goodness = table.sign * own["score"].to_numpy(float)
        rates = own["learning_rate"].to_numpy(float)
        best = int(goodness.argmax())
        good = goodness >= goodness[best] - table.within[0]
        edges = [_at_edge(own[name].to_numpy(float), best) for name in _TUNED]
        rows.append(
            {
                "backbone": backbone,
                "optimizer": optimizer,
                "trials": len(own),
                "within": int(good.sum()),
                "share": good.mean(),
                "learning_rate_low": rates[good].min(),
                "learning_rate_high": rates[good].max(),
                "learning_rate_factor": rates[good].max() / max(rates[good].min(), 1e-300),
                "best_learning_rate": rates[best],
                "best_weight_decay": own["weight_decay"].iloc[best],
                "at_edge": any(edges),
            }
        )
    return pandas.DataFrame(rows) if rows else None


def _at_edge(values: np.ndarray, best: int) -> bool:
    tried = np.unique(values[np.isfinite(values)])
    return len(tried) >= 3 and values[best] in (tried[0], tried[-1])
