"""Noise between the seeds of each backbone, moderated over backbones."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas
from scipy import optimize, special, stats

from bocb_jax.coupling.score_table import ScoreTable

# A variance of zero (scores printed with few digits) counts as this share of the median one.
_LEAST_SHARE = 1e-5
_OUTLYING = 0.01  # level at which a cell or a backbone is noisier than the others


def estimate_noise(table: ScoreTable) -> pandas.DataFrame:
    """Return the standard deviation of one run on every backbone.

    Own variances, pooled over the backbone's cells, are drawn towards a common value as in Smyth
    (2004, "limma"): s~^2 = (d0 s0^2 + d s^2) / (d0 + d). Only finished runs count. A cell that is
    shown to be noisier than the rest of its backbone keeps its own variance and is not pooled; a
    backbone that is shown to be noisier than the others keeps its own and does not change theirs.

    Returns:
      Index backbone: sd (moderated, in the unit of the score), df (its degrees of freedom, which
      may be infinite), own_sd, own_df, source: "seeds", "spread" (given with the scores), "given"
      (`table.noise`), "other backbones", or "unknown", where sd is NaN; and noisy: optimizer ->
      (sd, df) of the cells that keep their own.
    """
    frame = _own_noise(table)
    known = frame.index[frame["own_df"] > 0]
    alike = known[~_outlying(frame.loc[known, "own_sd"] ** 2, frame.loc[known, "own_df"])]
    if len(alike) >= 3:
        squares, degrees = frame.loc[alike, "own_sd"] ** 2, frame.loc[alike, "own_df"]
        variance, prior = fit_prior(squares.to_numpy(), degrees.to_numpy())
        moderated: pandas.Series | float = variance
        if np.isfinite(prior):
            moderated = (prior * variance + degrees * squares) / (prior + degrees)
        frame.loc[alike, "sd"] = np.sqrt(moderated)
        # All backbones together have no more to tell than their own degrees of freedom.
        frame.loc[alike, "df"] = np.minimum(prior + degrees, degrees.sum())
        rest = frame.index.difference(known)
        if table.noise is None and prior > 0 and len(rest):
            frame.loc[rest, ["sd", "df"]] = np.sqrt(variance), min(prior, degrees.sum())
            frame.loc[rest, "source"] = "other backbones"
    if table.noise is not None:
        rest = frame.index[frame["source"] == "unknown"]
        frame.loc[rest, ["sd", "df"]] = table.noise, np.inf
        frame.loc[rest, "source"] = "given"
    return frame


def noise_of(
    noise: pandas.DataFrame, backbone: str, optimizers: Iterable[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return standard deviation and degrees of freedom of a run, for optimizers on a backbone.

    Args:
      noise: from `estimate_noise`.
      backbone: one of its rows.
      optimizers: names.
    """
    row = noise.loc[backbone]
    pairs = [row["noisy"].get(name, (row["sd"], row["df"])) for name in optimizers]
    sd, df = np.array(pairs, float).reshape(-1, 2).T
    return sd, df


def _own_noise(table: ScoreTable) -> pandas.DataFrame:
    """Return every backbone's row of `estimate_noise` from its own figures alone."""
    runs = table.runs[table.runs["score"].notna()]
    cells = runs.groupby(["backbone", "optimizer"], sort=False)["score"].agg(["var", "size"])
    cells["df"] = cells["size"] - 1.0
    cells = cells[cells["df"] > 0]
    known = dict(iter(cells.groupby(level="backbone", sort=False)))
    rows: dict[str, dict[str, Any]] = {}
    for backbone in table.backbones:
        if backbone not in known:
            rows[backbone] = {"squares": 0.0, "own_df": 0.0, "noisy": {}}
            continue
        here = known[backbone].droplevel("backbone")
        apart = _outlying(here["var"], here["df"])
        rest = here[~apart]
        rows[backbone] = {
            "squares": float((rest["var"] * rest["df"]).sum()),
            "own_df": float(rest["df"].sum()),
            "noisy": {
                str(name): (float(np.sqrt(cell["var"])), float(cell["df"]))
                for name, cell in here[apart].iterrows()
            },
        }
    frame = pandas.DataFrame.from_dict(rows, orient="index")
    frame["source"] = np.where(frame["own_df"] > 0, "seeds", "unknown")
    _take_spreads(frame, runs)
    variance = frame["squares"] / frame["own_df"].where(frame["own_df"] > 0)
    positive = variance[variance > 0]
    if len(positive):
        variance = variance.clip(lower=_LEAST_SHARE * positive.median())
    frame["own_sd"] = np.sqrt(variance)
    frame["sd"], frame["df"] = frame["own_sd"], frame["own_df"]
    columns = ["sd", "df", "own_sd", "own_df", "source", "noisy"]
    return frame[columns].rename_axis("backbone")


def _take_spreads(frame: pandas.DataFrame, runs: pandas.DataFrame) -> None:
    """Set the noise of backbones without seeds from the spread that is given with their scores."""
    if "spread" not in runs:
        return
    spreads = runs.dropna(subset="spread")
    squares = (spreads["spread"] ** 2).groupby(spreads["backbone"]).agg(["sum", "size"])
    for backbone, (total, size) in squares.iterrows():
        if frame.at[backbone, "own_df"] == 0:
            # Each figure counts as one degree of freedom: how many runs are behind it is not known.
            frame.loc[backbone, ["squares", "own_df", "source"]] = total, float(size), "spread"


def _outlying(variances: pandas.Series, degrees: pandas.Series) -> np.ndarray:
    """Return which variances are shown to be larger than all others pooled.

    By Cochran's (1941) test, the largest first, at 5 percent over all of them, for at most half.
    """
    apart = np.zeros(len(variances), bool)
    values, df = variances.to_numpy(float), degrees.to_numpy(float)
    for _ in range((len(values) - 1) // 2):
        kept = np.flatnonzero(~apart)
        largest = kept[values[kept].argmax()]
        rest = kept[kept != largest]
        pooled = np.average(values[rest], weights=df[rest])
        if not pooled > 0:
            break
        level = _OUTLYING / len(kept)
        if stats.f.sf(values[largest] / pooled, df[largest], df[rest].sum()) >= level:
            break
        apart[largest] = True
    return apart


def fit_prior(variances: np.ndarray, degrees: np.ndarray) -> tuple[float, float]:
    """Return the common variance s0^2 and its weight d0 in degrees of freedom (Smyth 2004).

    The logarithms of the variances are matched to a scaled F distribution by their first two
    moments.

    Args:
      variances: (n,) of each backbone, positive unless all are zero.
      degrees: (n,) their degrees of freedom, at least 1.

    Returns:
      Variance and weight; infinite where the variances differ no more than chance, and 0 where
      all of them are zero.
    """
    if not (variances > 0).all():
        return 0.0, 0.0
    half = degrees / 2
    logs = np.log(variances) - special.digamma(half) + np.log(half)
    spread = logs.var(ddof=1) - special.polygamma(1, half).mean()
    if spread <= 0:
        return float(np.average(variances, weights=degrees)), np.inf
    prior = 2 * _inverse_trigamma(spread)
    shift = special.digamma(prior / 2) - np.log(prior / 2)
    return float(np.exp(logs.mean() + shift)), float(prior)


def _inverse_trigamma(value: float) -> float:
    """Return x > 0 with trigamma(x) = value > 0, on a logarithmic scale."""

    def excess(log: float) -> float:
        return float(special.polygamma(1, np.exp(log))) - value

    # trigamma(x) lies between 1 / x and 1 / x + 1 / x^2.
    low, high = np.log(1 / value) - 1, np.log(1 / value + 1 / np.sqrt(value)) + 1
    return float(np.exp(optimize.brentq(excess, low, high, xtol=1e-12)))
