"""Noise between the seeds of each backbone, moderated over backbones."""

import numpy as np
import pandas
from scipy import optimize, special

from bocb_jax.coupling.score_table import ScoreTable

# A variance of zero (scores printed with few digits) counts as this share of the median one.
_LEAST_SHARE = 1e-5


def estimate_noise(table: ScoreTable) -> pandas.DataFrame:
    """Return the standard deviation of one run on every backbone.

    Own variances, pooled over the backbone's cells, are drawn towards a common value as in Smyth
    (2004, "limma"): s~^2 = (d0 s0^2 + d s^2) / (d0 + d). Only finished runs count.

    Returns:
      Index backbone: sd (moderated, in the unit of the score), df (its degrees of freedom, which
      may be infinite), own_sd, own_df, and source: "seeds", "spread" (given with the scores),
      "given" (`table.noise`), "other backbones", or "unknown", where sd is NaN.
    """
    own = _own_noise(table)
    known = own[own["df"] > 0]
    frame = own.rename(columns={"sd": "own_sd", "df": "own_df"})
    frame["sd"], frame["df"] = frame["own_sd"], frame["own_df"]
    if len(known) >= 3:
        variance, prior = fit_prior(known["sd"].to_numpy() ** 2, known["df"].to_numpy())
        moderated: pandas.Series | float = variance
        if np.isfinite(prior):
            weighted = prior * variance + known["df"] * known["sd"] ** 2
            moderated = weighted / (prior + known["df"])
        frame.loc[known.index, "sd"] = np.sqrt(moderated)
        # All backbones together have no more to tell than their own degrees of freedom.
        frame.loc[known.index, "df"] = np.minimum(prior + known["df"], known["df"].sum())
        rest = frame.index.difference(known.index)
        if table.noise is None and prior > 0 and len(rest):
            frame.loc[rest, ["sd", "df"]] = np.sqrt(variance), min(prior, known["df"].sum())
            frame.loc[rest, "source"] = "other backbones"
    if table.noise is not None:
        rest = frame.index[frame["source"] == "unknown"]
        frame.loc[rest, ["sd", "df"]] = table.noise, np.inf
        frame.loc[rest, "source"] = "given"
    return frame[["sd", "df", "own_sd", "own_df", "source"]].rename_axis("backbone")


def _own_noise(table: ScoreTable) -> pandas.DataFrame:
    """Return sd, df and source of every backbone from its own figures alone."""
    runs = table.runs[table.runs["score"].notna()]
    cells = runs.groupby(["backbone", "optimizer"], sort=False)["score"]
    squares = (cells.var(ddof=0) * cells.size()).groupby("backbone").sum()
    degrees = (cells.size() - 1).groupby("backbone").sum()
    frame = pandas.DataFrame({"squares": squares, "df": degrees}, dtype=float)
    frame = frame.reindex(table.backbones).fillna({"squares": 0.0, "df": 0.0})
    frame["source"] = np.where(frame["df"] > 0, "seeds", "unknown")
    if "spread" in runs:
        spreads = runs.dropna(subset="spread").groupby("backbone")["spread"]
        given = (spreads.apply(lambda s: float((s**2).sum()))).reindex(frame.index)
        # Each figure counts as one degree of freedom: how many runs are behind it is not known.
        takes = (frame["df"] == 0) & given.notna()
        frame.loc[takes, "squares"] = given[takes]
        frame.loc[takes, "df"] = spreads.size().reindex(frame.index)[takes].astype(float)
        frame.loc[takes, "source"] = "spread"
    variance = frame["squares"] / frame["df"].where(frame["df"] > 0)
    positive = variance[variance > 0]
    if len(positive):
        variance = variance.clip(lower=_LEAST_SHARE * positive.median())
    return pandas.DataFrame({"sd": np.sqrt(variance), "df": frame["df"], "source": frame["source"]})


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
