"""Tuning: how far the best setting wanders, what more trials buy, how wide the good region is."""

import dataclasses

import numpy as np
import pandas
from scipy import special, stats

from bocb_jax import paper
from bocb_jax.coupling.scores import ScoreTable

_SETTINGS = ("learning_rate", "weight_decay")
# More values than a grid has: a random search, measured in factors of two.
_LARGEST_GRID = 10
# A verdict on tuning needs this share of the coupling to go (or to stay).
_MOSTLY, _HARDLY = 0.5, 0.2
_BOOTSTRAP = 200


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Ordinal distance of tuned learning rate and weight decay to an optimizer's usual ones."""

    distances: pandas.DataFrame  # optimizers x backbones: steps in learning rate + weight decay
    learning_rate_steps: pandas.DataFrame
    weight_decay_steps: pandas.DataFrame
    # index backbone / optimizer: n, mean, q1, median, q3, max
    by_backbone: pandas.DataFrame
    by_optimizer: pandas.DataFrame
    modes: pandas.DataFrame  # index optimizer: learning_rate, weight_decay, n
    description: str


@dataclasses.dataclass(frozen=True)
class Budget:
    """Scores and coupling against the number of trials (expected best of k)."""

    # backbone, optimizer, trials (k), expected_best, standard_error, n (trials recorded)
    curves: pandas.DataFrame
    # index trials (k): interaction_std, interaction_share, mean_regret, cells
    coupling: pandas.DataFrame
    tuning_share: float | None  # share of the coupling at 1 trial that is gone at the largest k
    verdict: str  # in words: a cost of tuning or a ceiling
    # backbone, optimizer, learning_rate, weight_decay, score, best, gap: score with the setting
    # that loses least on the other backbones ("default"), and how far it is below the best
    defaults: pandas.DataFrame | None
    # mean of (winner's score in the search - score of fresh seeds on the same split), in the unit
    optimism: float | None
    optimism_low: float | None
    optimism_high: float | None
    optimism_cells: int


def published_settings() -> pandas.DataFrame:
    """The paper's tuned values: optimizer, backbone, learning_rate, weight_decay."""
    return paper.table("hyperparameters")


def settings_of(table: ScoreTable) -> pandas.DataFrame:
    """The tuned values of a table's pairs, as its final runs have them."""
    frame = table.runs[["optimizer", "backbone", *_SETTINGS]].dropna(subset=list(_SETTINGS))
    return frame.drop_duplicates(["optimizer", "backbone"])


def distances(
    settings: pandas.DataFrame,
    *,
    center: str = "mode",
    trials: pandas.DataFrame | None = None,
) -> Hyperparameters | None:
    """How far each pair's best setting is from the optimizer's usual one, in steps of the search.

    The paper speaks of one-hot codes, and its box plots hold odd numbers, which one-hot codes
    cannot give: the distance is between positions in the sorted list of values, those tried for the
    optimizer or, where the search was not recorded, those that won.

    Args:
      settings: optimizer, backbone, learning_rate, weight_decay; one row a pair.
      center: "mode" (the paper's text; among ties the one with the least mean distance) or "median"
        (closer to the paper's box plots).
      trials: the search's runs.

    Returns:
      None without settings of two backbones.
    """
    if settings["backbone"].nunique() < 2:
        return None
    optimizers = pandas.unique(settings["optimizer"])
    backbones = pandas.unique(settings["backbone"])
    steps, modes = {}, {}
    for optimizer, rows in settings.groupby("optimizer", sort=False):
        modes[optimizer] = {"n": len(rows)}
        for name in _SETTINGS:
            values = rows[name].to_numpy(float)
            tried = values
            if trials is not None:
                own = trials.loc[trials["optimizer"] == optimizer, name].dropna().to_numpy(float)
                tried = np.concatenate([values, own])
            codes = _positions(values, np.unique(tried))
            middle = _center(codes, center)
            modes[optimizer][name] = float(values[np.abs(codes - middle).argmin()])
            for backbone, code in zip(rows["backbone"], codes, strict=True):
                steps[name, optimizer, backbone] = abs(code - middle)

    def grid(name):
        frame = pandas.DataFrame(np.nan, index=optimizers, columns=backbones)
        for (setting, optimizer, backbone), value in steps.items():
            if setting == name:
                frame.loc[optimizer, backbone] = value
        return frame.rename_axis("optimizer").rename_axis("backbone", axis=1)

    rates, decays = grid("learning_rate"), grid("weight_decay")
    total = rates + decays
    return Hyperparameters(
        distances=total,
        learning_rate_steps=rates,
        weight_decay_steps=decays,
        by_backbone=_summary(total),
        by_optimizer=_summary(total.T),
        modes=pandas.DataFrame.from_dict(modes, orient="index").rename_axis("optimizer")[
            [*_SETTINGS, "n"]
        ],
        description=(
            "Steps in the sorted list of values between a pair's best learning rate and the "
            f"optimizer's {center}, plus the same for weight decay."
        ),
    )


def _positions(values: np.ndarray, tried: np.ndarray) -> np.ndarray:
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


def expected_best(scores: np.ndarray) -> np.ndarray:
    """Expected best of k trials drawn without replacement from those recorded, k = 1, ..., n.

    The estimator is unbiased (Tang et al. 2020); drawing with replacement (Dodge et al. 2019)
    underestimates.

    Args:
      scores: (..., n) larger is better.

    Returns:
      (..., n) estimates; the first is the mean, the last the maximum.
    """
    return np.sort(scores, axis=-1) @ _weights(np.shape(scores)[-1])


def _weights(n: int) -> np.ndarray:
    """(n, n): column k - 1 has the probability that the i-th smallest of n is the best of k."""
    i, k = np.arange(1, n + 1)[:, None], np.arange(1, n + 1)

    def log_binomial(top, bottom):
        known = (bottom >= 0) & (bottom <= top)
        top, bottom = np.where(known, top, 0), np.where(known, bottom, 0)
        logs = special.gammaln(top + 1) - special.gammaln(bottom + 1)
        return np.where(known, logs - special.gammaln(top - bottom + 1), -np.inf)

    return np.exp(log_binomial(i - 1, k - 1) - log_binomial(n + 0 * k, k))


def budget(table: ScoreTable, *, confidence: float = 0.95, seed: int = 0) -> Budget | None:
    """What more trials buy, and how much coupling they leave.

    Coupling that fades with the number of trials is a cost of tuning; coupling that stays is a
    ceiling. Scores are those of the search: of one seed, on the validation split.

    Returns:
      None if no pair has two trials with a score.
    """
    sign = 1 if table.higher_is_better else -1
    if table.trials is None:
        return None
    groups = {
        pair: sign * scores.to_numpy(float)
        for pair, scores in table.trials.dropna(subset="score").groupby(
            ["optimizer", "backbone"], sort=False
        )["score"]
    }
    if max(map(len, groups.values()), default=0) < 2:
        return None
    rng = np.random.default_rng(seed)
    curves, parts = {}, []
    for (optimizer, backbone), scores in groups.items():
        n = len(scores)
        curves[optimizer, backbone] = best = expected_best(scores)
        drawn = expected_best(scores[rng.integers(n, size=(_BOOTSTRAP, n))])
        parts.append(
            pandas.DataFrame(
                {
                    "backbone": backbone,
                    "optimizer": optimizer,
                    "trials": np.arange(1, n + 1),
                    "expected_best": sign * best,
                    "standard_error": drawn.std(axis=0, ddof=1),
                    "n": n,
                }
            )
        )
    coupling = _coupling_by_trials(curves)
    share = None
    if coupling is not None and len(coupling) > 1:
        first, last = coupling["interaction_std"].iloc[[0, -1]]
        share = float(1 - last / first) if first > 0 else None
    optimism = _optimism(table, sign, confidence)
    return Budget(
        curves=pandas.concat(parts, ignore_index=True),
        coupling=coupling if coupling is not None else pandas.DataFrame(),
        tuning_share=share,
        verdict=_verdict(coupling, share, table.unit),
        defaults=_defaults(table, sign),
        **optimism,
    )


def _coupling_by_trials(curves: dict) -> pandas.DataFrame | None:
    """Interaction of the table of expected bests, for every k that nine in ten pairs reach."""
    lengths = np.array([len(curve) for curve in curves.values()])
    most = int(np.quantile(lengths, 0.1, method="lower"))
    rows = {}
    full = pandas.DataFrame(
        {pair: curve[:most] for pair, curve in curves.items() if len(curve) >= most}
    )
    for k in range(1, most + 1):
        # Only backbones and optimizers with all their cells: means stay comparable.
        matrix = full.iloc[k - 1].unstack()
        matrix = matrix.loc[:, matrix.notna().mean() > 0.5].dropna(axis=0)
        if min(matrix.shape) < 2:
            return None
        values = matrix.to_numpy()
        mean = values.mean()
        rows_effect = values.mean(axis=1, keepdims=True) - mean
        columns_effect = values.mean(axis=0, keepdims=True) - mean
        interaction = values - mean - rows_effect - columns_effect
        total = ((values - mean) ** 2).mean()
        rows[k] = {
            "interaction_std": np.sqrt((interaction**2).mean()),
            "interaction_share": (interaction**2).mean() / total if total > 0 else np.nan,
            "mean_regret": (values.max(axis=0) - values).mean(),
            "cells": values.size,
        }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("trials")


def _verdict(coupling: pandas.DataFrame | None, share: float | None, unit: str) -> str:
    if share is None:
        return "Too few trials in common to tell a cost of tuning from a ceiling."
    first, last = coupling["interaction_std"].iloc[[0, -1]]
    most = coupling.index[-1]
    figures = (
        f"from {first:.2f} {unit} with 1 trial to {last:.2f} with {most} "
        f"(n = {coupling['cells'].iloc[-1]:.0f} cells)"
    )
    if share >= _MOSTLY:
        return f"Most of the coupling is a cost of tuning: it falls {figures}."
    if share <= _HARDLY:
        moves = "stays" if share >= -_HARDLY else "grows"
        return f"The coupling is a ceiling that tuning does not lift: it {moves}, {figures}."
    return f"The coupling is partly a cost of tuning and partly a ceiling: it falls {figures}."


def _defaults(table: ScoreTable, sign: int) -> pandas.DataFrame | None:
    """Each pair with the one setting that loses least on the optimizer's other backbones."""
    trials = table.trials.dropna(subset=["score", *_SETTINGS])
    rows = []
    for optimizer, own in trials.groupby("optimizer", sort=False):
        grid = sign * own.groupby([*_SETTINGS, "backbone"])["score"].mean().unstack()
        if grid.shape[1] < 2:
            continue
        scores = grid.to_numpy()
        best = np.nanmax(scores, axis=0)
        tried = ~np.isnan(scores)
        losses = np.where(tried, best - scores, 0)
        # Everything but the column itself.
        others = tried.sum(axis=1, keepdims=True) - tried
        means = (losses.sum(axis=1, keepdims=True) - losses) / np.maximum(others, 1)
        # Tried on this backbone, and on most of the others.
        usable = tried & (others > 0.5 * (scores.shape[1] - 1))
        chosen = np.where(usable, means, np.inf).argmin(axis=0)
        for column in np.flatnonzero(usable.any(axis=0)):
            setting = chosen[column]
            score = scores[setting, column]
            figures = sign * score, sign * best[column], best[column] - score
            rows.append((grid.columns[column], optimizer, *grid.index[setting], *figures))
    columns = ["backbone", "optimizer", *_SETTINGS, "score", "best", "gap"]
    return pandas.DataFrame(rows, columns=columns) if rows else None


def _optimism(table: ScoreTable, sign: int, confidence: float) -> dict:
    pair = ["optimizer", "backbone"]
    searched = (sign * table.trials["score"]).groupby([table.trials[name] for name in pair]).max()
    fresh = table.runs.dropna(subset="validation_score")
    fresh = (sign * fresh["validation_score"]).groupby([fresh[name] for name in pair]).mean()
    excess = (searched - fresh).dropna().to_numpy()
    if len(excess) == 0 or table.score == "train loss":
        return {
            "optimism": None, "optimism_low": None, "optimism_high": None, "optimism_cells": 0,
        }  # fmt: skip
    low = high = None
    if len(excess) > 1:
        reach = stats.t.ppf((1 + confidence) / 2, len(excess) - 1) * stats.sem(excess)
        low, high = float(excess.mean() - reach), float(excess.mean() + reach)
    return {
        "optimism": float(excess.mean()),
        "optimism_low": low,
        "optimism_high": high,
        "optimism_cells": len(excess),
    }


def width(table: ScoreTable) -> pandas.DataFrame | None:
    """Of the settings searched for a pair, how many are as good as the best.

    It depends on what was searched: a wider search has a smaller share.

    Returns:
      A row a pair: backbone, optimizer, trials, within (trials no more than `table.within[0]` below
      the best), share, learning_rate_low, learning_rate_high (of these), learning_rate_factor
      (their ratio), best_learning_rate, best_weight_decay, at_edge (the best is at the lowest or
      highest learning rate or weight decay of three or more tried). None without trials.
    """
    if table.trials is None:
        return None
    sign = 1 if table.higher_is_better else -1
    rows = []
    trials = table.trials.dropna(subset=["score", "learning_rate"])
    for (backbone, optimizer), own in trials.groupby(["backbone", "optimizer"], sort=False):
        goodness = sign * own["score"].to_numpy(float)
        rates = own["learning_rate"].to_numpy(float)
        best = int(goodness.argmax())
        good = goodness >= goodness[best] - table.within[0]
        edges = [_at_edge(own[name].to_numpy(float), best) for name in _SETTINGS]
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
