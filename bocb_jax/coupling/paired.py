"""One optimizer against several others, paired by seed: where it helps and where it fails."""

from typing import Any

import numpy as np
import pandas
from scipy.optimize import brentq

from bocb_jax.coupling.best import dunnett_quantile
from bocb_jax.coupling.choice import MOST_SEEDS
from bocb_jax.coupling.costs import diverged
from bocb_jax.coupling.noise import moderate
from bocb_jax.coupling.score_table import ScoreTable


def compare_paired(table: ScoreTable, name: str, *, confidence: float = 0.95) -> pandas.DataFrame:
    """Compare an optimizer with all others on every backbone, seed by seed.

    Runs of one seed share initialization and batches, so that a seed is a block: its effect is
    taken out before the noise is estimated. The noise is moderated over backbones, and the
    intervals hold for all optimizers of a backbone together (Dunnett 1955).

    Args:
      table: the scores.
      name: the optimizer.
      confidence: of the intervals of one backbone.

    Returns:
      A row for each backbone and other optimizer that share a seed: backbone, optimizer,
      difference (`name` minus the other, positive where `name` is better), low, high (NaN where
      there are too few seeds for the noise), n (seeds in common).
    """
    blocks = {b: _blocks(table, b) for b in table.backbones}
    noise = _block_noise(table, blocks)
    rows = []
    for backbone, scores in blocks.items():
        if name not in scores.index:
            continue
        sd, df = noise[backbone]
        differences = (scores.loc[name] - scores.drop(index=name)).dropna(axis=0, how="all")
        for other, values in differences.iterrows():
            n = int(values.notna().sum())
            level = (1 + confidence) / 2
            half = np.nan
            if sd >= 0:
                half = dunnett_quantile(level, len(differences), df, 0.5) * sd * np.sqrt(2 / n)
            mean = float(values.mean())
            rows.append((backbone, other, mean, mean - half, mean + half, n))
    columns = ["backbone", "optimizer", "difference", "low", "high", "n"]
    return pandas.DataFrame(rows, columns=columns)


def compare_overall(table: ScoreTable, name: str, *, confidence: float = 0.95) -> pandas.DataFrame:
    """Compare an optimizer with all others over the backbones of a table together, seed by seed.

    Backbones are weighted as in a random-effects meta-analysis (Paule and Mandel 1982): by
    precision where they agree, so that one of noisy seeds does not hide what the others show, and
    nearly equally where they do not. The intervals are those of the noise between seeds: they hold
    for these backbones, not for others.

    Args:
      table: the scores.
      name: the optimizer.
      confidence: of all intervals together.

    Returns:
      Index optimizer: difference (weighted mean, positive where `name` is better), low, high
      (NaN where there are too few seeds), verdict ("ahead", "behind", "equal": shown to be at most
      `table.equal` apart, or "undecided"), n (backbones that both have).
    """
    blocks = {b: _blocks(table, b) for b in table.backbones}
    noise = _block_noise(table, blocks)
    others = [other for other in table.optimizers if other != name]
    rows = {}
    for other in others:
        means, variances, degrees = [], [], []
        for backbone, scores in blocks.items():
            if name not in scores.index or other not in scores.index:
                continue
            values = (scores.loc[name] - scores.loc[other]).dropna()
            if len(values):
                means.append(float(values.mean()))
                variances.append(2 * noise[backbone][0] ** 2 / len(values))
                degrees.append(noise[backbone][1])
        if not means:
            continue
        weights = _meta_weights(np.array(means), np.array(variances))
        error = float(np.sqrt((weights**2 * variances).sum()))
        df = min(degrees)  # moderated: all of them rest on much the same runs
        half = np.nan
        if np.isfinite(error):
            half = dunnett_quantile((1 + confidence) / 2, len(others), df, 0.5) * error
        mean = float(weights @ np.array(means))
        low, high = mean - half, mean + half
        rows[other] = {
            "difference": mean,
            "low": low,
            "high": high,
            "verdict": _overall_verdict(low, high, table.equal),
            "n": len(means),
        }
    columns = ["difference", "low", "high", "verdict", "n"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis(
        "optimizer"
    )


def _meta_weights(means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Return the weights of a random-effects meta-analysis, tau^2 by Paule and Mandel (1982)."""
    count = len(means)
    if not (variances > 0).all():
        return np.full(count, 1 / count)

    def weights(tau_squared: float) -> np.ndarray:
        precision = 1 / (variances + tau_squared)
        return precision / precision.sum()

    def excess(tau_squared: float) -> float:  # Cochran's Q less its expectation; decreasing
        squares = (means - weights(tau_squared) @ means) ** 2
        return float((squares / (variances + tau_squared)).sum()) - (count - 1)

    if count < 2 or excess(0.0) <= 0:
        return weights(0.0)
    return weights(float(brentq(excess, 0.0, float(count * np.ptp(means) ** 2))))


def _overall_verdict(low: float, high: float, equal: float) -> str:
    if -equal - 1e-9 <= low and high <= equal + 1e-9:
        return "equal"
    return "ahead" if low > 0 else "behind" if high < 0 else "undecided"


def judge_paired(table: ScoreTable, name: str, compared: pandas.DataFrame) -> pandas.DataFrame:
    """Say on which backbones an optimizer helps, where it is as good, and where it fails.

    Args:
      table: the scores.
      name: the optimizer.
      compared: from `compare_paired`.

    Returns:
      Index backbone: rival (the best of the others), difference (to the rival), low, high (of the
      distance to the best of the others), verdict: "helps" (shown to be ahead of all others), "as
      good" (shown to be at most `table.equal` behind any), "fails" (shown to be further behind
      one, or diverged where another finished), "undecided"; and seeds, the number that would
      decide if differences and noise stayed, NaN where not known or above `MOST_SEEDS`.
    """
    failed = diverged(table) & (table.counts() > 0).any()
    rows: dict[str, dict[str, Any]] = {}
    for backbone in table.backbones:
        here = compared[compared["backbone"] == backbone]
        if here.empty:
            lost = name in failed.index and bool(failed.at[name, backbone])
            rows[backbone] = {"verdict": "fails" if lost else "undecided"}
            continue
        ends = here[["low", "high"]].to_numpy()
        low, high = ends.min(axis=0)
        nearest = here.loc[here["difference"].idxmin()]
        word = _verdict(low, high, table.equal)
        seeds = np.nan
        if word == "undecided":
            seeds = _deciding_seeds(here, table.equal)
        rows[backbone] = {
            "rival": nearest["optimizer"],
            "difference": nearest["difference"],
            "low": low,
            "high": high,
            "verdict": word,
            "seeds": seeds,
        }
    columns = ["rival", "difference", "low", "high", "verdict", "seeds"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("backbone")


def _verdict(low: float, high: float, equal: float) -> str:
    if low > 0:
        return "helps"
    if high < -equal - 1e-9:
        return "fails"
    return "as good" if low >= -equal - 1e-9 else "undecided"


def _deciding_seeds(here: pandas.DataFrame, equal: float) -> float:
    """Return the least number of seeds that would decide, at the present differences and noise."""
    half = (here["high"] - here["difference"]) * np.sqrt(here["n"])
    for n in range(int(here["n"].min()) + 1, MOST_SEEDS + 1):
        low = (here["difference"] - half / np.sqrt(n)).min()
        high = (here["difference"] + half / np.sqrt(n)).min()
        if _verdict(low, high, equal) != "undecided":
            return float(n)
    return np.nan


def _blocks(table: ScoreTable, backbone: str) -> pandas.DataFrame:
    """Return the scores of a backbone, optimizers x seeds, times the sign of the table."""
    runs = table.runs[(table.runs["backbone"] == backbone) & table.runs["score"].notna()]
    grid = runs.pivot_table(index="optimizer", columns="seed", values="score", sort=False)
    return table.sign * grid


def _block_noise(
    table: ScoreTable, blocks: dict[str, pandas.DataFrame]
) -> dict[str, tuple[float, float]]:
    """Return standard deviation and degrees of freedom of a run, seed effects taken out.

    Where no seed repeats, the noise is the one given with the figures of the backbone.
    """
    own = {}
    for backbone, scores in blocks.items():
        rows, columns = np.nonzero(scores.notna().to_numpy())
        values = scores.to_numpy()[rows, columns]
        design = np.zeros((len(values), sum(scores.shape)))
        design[np.arange(len(values)), rows] = 1
        design[np.arange(len(values)), scores.shape[0] + columns] = 1
        rank = np.linalg.matrix_rank(design) if len(values) else 0
        if len(values) > rank:
            fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
            squares = float(((values - fitted) ** 2).sum())
            own[backbone] = squares, float(len(values) - rank)
    given = (table.figure_noise() ** 2).groupby(table.runs["backbone"]).mean() ** 0.5
    found = {name: (float(given.get(name, np.nan)), np.inf) for name in blocks}
    squares = pandas.DataFrame.from_dict(own, orient="index", columns=["squares", "df"])
    if not (squares["squares"] > 0).any():
        return found
    moderated = moderate(squares["squares"], squares["df"])
    both = np.sqrt(moderated.variances), moderated.degrees
    return found | {name: (float(sd), float(df)) for name, sd, df in zip(own, *both, strict=True)}
