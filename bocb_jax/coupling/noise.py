"""Noise between the seeds of each backbone, moderated over backbones."""

import dataclasses
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
    found = moderate(frame.loc[known, "squares"], frame.loc[known, "own_df"])
    frame.loc[known, "own_sd"] = np.sqrt(found.own)
    frame.loc[known, ["sd", "df"]] = np.stack([np.sqrt(found.variances), found.degrees], axis=1)
    rest = frame.index.difference(known)
    # Fewer degrees of freedom than one give intervals without end.
    if table.noise is None and found.weight >= 1 and len(rest):
        frame.loc[rest, ["sd", "df"]] = np.sqrt(found.common), found.weight
        frame.loc[rest, "source"] = "other backbones"
    if table.noise is not None:
        rest = frame.index[frame["source"] == "unknown"]
        frame.loc[rest, ["sd", "df"]] = table.noise, np.inf
        frame.loc[rest, "source"] = "given"
    return frame[["sd", "df", "own_sd", "own_df", "source", "noisy"]]


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
    """Return squares (sum), own_df, source and noisy of every backbone from its own figures alone.

    The other columns of `estimate_noise` are there, and unknown.
    """
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
    if not (frame["squares"] > 0).any():  # seeds that agree exactly everywhere tell nothing
        frame[["own_df", "source"]] = 0.0, "unknown"
    return frame.assign(sd=np.nan, df=0.0, own_sd=np.nan).rename_axis("backbone")


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


@dataclasses.dataclass(frozen=True)
class Moderated:
    """Variances of several backbones, drawn towards a common one."""

    own: np.ndarray  # (n,) before that; none is 0
    variances: np.ndarray  # (n,)
    degrees: np.ndarray  # (n,) of freedom of `variances`; may be infinite
    common: float  # what they are drawn to; NaN where there are too few alike
    weight: float  # of it in degrees of freedom, at most those of all together


def moderate(squares: pandas.Series, degrees: pandas.Series) -> Moderated:
    """Draw the variances of backbones towards a common one (Smyth 2004).

    Those shown to be larger than the others keep their own. A variance of about zero comes of
    figures with few digits, and has no part in the common one.

    Args:
      squares: (n,) sums of squares of each backbone, some of them positive.
      degrees: (n,) their degrees of freedom, at least 1.
    """
    df = degrees.to_numpy(float)
    own = squares.to_numpy(float) / df
    floor = _LEAST_SHARE * np.median(own[own > 0]) if (own > 0).any() else 0.0
    saturated, own = own < floor, np.maximum(own, floor)
    alike = ~_outlying(pandas.Series(own), degrees)
    fitted = alike & ~saturated
    if fitted.sum() < 3:
        return Moderated(own, own, df, np.nan, 0.0)
    common, weight = fit_prior(own[fitted], df[fitted])
    drawn = (weight * common + df * own) / (weight + df) if np.isfinite(weight) else common
    # All backbones together have no more to tell than their own degrees of freedom.
    most = df[fitted].sum()
    return Moderated(
        own=own,
        variances=np.where(alike, drawn, own),
        degrees=np.where(alike, np.minimum(weight + df, most), df),
        common=common,
        weight=min(weight, most),
    )


def fit_prior(variances: np.ndarray, degrees: np.ndarray) -> tuple[float, float]:
    """Return the common variance s0^2 and its weight d0 in degrees of freedom (Smyth 2004).

    The logarithms of the variances are matched to a scaled F distribution by their first two
    moments.

    Args:
      variances: (n,) of each backbone, positive.
      degrees: (n,) their degrees of freedom, at least 1.

    Returns:
      Variance and weight, which is infinite where the variances differ no more than chance.
    """
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
