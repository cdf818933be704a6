"""Regrets with a cost for what failed, and the optimizer that costs least elsewhere.

An optimizer that ran and never finished has no score; where costs are added up it costs as much as
the worst that finished there, and where few or only close ones did, as much as elsewhere.
"""

from typing import TypeVar

import numpy as np
import pandas

from bocb_jax.coupling.score_table import ScoreTable, regret_of

FAR = 5  # times what counts as equal: an optimizer further behind is named as one to avoid
# What counts as equal times this is the most that a regret on another backbone, or after another
# pre-training, counts: whether an optimizer fails there by 10 or by 40 points says the same.
_CAP = 8
LEAST_BACKBONES = 4  # for the price of general advice

T = TypeVar("T", pandas.DataFrame, pandas.Series)


def costs_of(table: ScoreTable) -> pandas.DataFrame:
    """Return regrets, optimizers x backbones, with the costs of `with_failures`.

    NaN remains where there is no run that tells: none was tried, or it lacked memory or crashed.
    """
    regret = regret_of(table.goodness())
    costs = with_failures(regret.to_numpy(), diverged(table).to_numpy(), table.equal)
    return pandas.DataFrame(costs, index=regret.index, columns=regret.columns)


def far_from(equal: float) -> float:
    """Return the regret beyond which an optimizer is one to avoid.

    Args:
      equal: difference that counts as equal.
    """
    return FAR * equal


def far_behind(regret: T, equal: float) -> T:
    """Return where a regret is of an optimizer to avoid."""
    return regret > far_from(equal) + 1e-9


def cap_of(equal: float) -> float | None:
    """Return the most that a regret elsewhere counts; None where nothing counts as equal."""
    return _CAP * equal if equal > 0 else None


def with_failures(regret: np.ndarray, failed: np.ndarray, equal: float) -> np.ndarray:
    """Return regrets where what failed costs as much as the worst that finished there.

    It costs no less than what is to be avoided (`far_from`), and no less than the worst optimizer
    does on the median backbone: where one optimizer finished, or all that did are close, their
    regrets say nothing about a failure.

    Args:
      regret: (..., optimizers, backbones); NaN where no run finished.
      failed: (optimizers, backbones) whether all runs that tell diverged.
      equal: difference that counts as equal.
    """
    worst = np.where(np.isnan(regret), -np.inf, regret).max(axis=-2, keepdims=True)
    known = np.isfinite(worst)
    if not known.any():
        return regret
    usual = np.nanmedian(np.where(known, worst, np.nan), axis=-1, keepdims=True)
    return np.where(failed, np.maximum(worst, np.maximum(usual, far_from(equal))), regret)


def diverged(table: ScoreTable) -> pandas.DataFrame:
    """Return whether runs of a cell diverged and none finished, optimizers x backbones."""
    counted = table.runs["status"].isin(("diverged", "not_reached"))
    cells = table.runs[counted].groupby(["optimizer", "backbone"]).size().unstack()
    cells = cells.reindex(index=table.optimizers, columns=table.backbones)
    return (cells > 0) & (table.counts() == 0)


def general_advice(costs: np.ndarray, families: pandas.Series) -> np.ndarray:
    """Return for each backbone the optimizer with the lowest mean cost on other families.

    Args:
      costs: (draws, optimizers, backbones) regrets; NaN where not known.
      families: of every backbone; those without one do not count.

    Returns:
      (draws, backbones) rows; -1 where no optimizer is known on half of the other backbones.
    """
    codes, _ = pandas.factorize(families)
    member = (codes[:, None] == np.arange(codes.max(initial=0) + 1)).astype(float)
    others = member.sum(axis=1, keepdims=True) @ np.ones((1, len(codes))) - member @ member.T
    others[:, codes < 0] = member.sum(axis=1)[:, None]  # a backbone without family: all others
    np.fill_diagonal(others, 0)
    known = (~np.isnan(costs)).astype(float) @ others
    enough = 2 * known >= np.maximum(1, others.sum(axis=0))
    means = np.nan_to_num(costs) @ others / np.maximum(known, 1)
    rows = np.where(enough, means, np.inf).argmin(axis=1)
    return np.where(enough.any(axis=1), rows, -1)
