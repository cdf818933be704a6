"""Does the optimizer of pre-training constrain the optimizer of fine-tuning?

On each backbone, optimizers x optimizers of pre-training are a table of their own, with the tests
of any table: does the pair interact, and what does it cost not to know the other factor?
"""

import dataclasses
from typing import Any

import numpy as np
import pandas
from scipy import stats

from bocb_jax.coupling import best, decomposition, margins, noise
from bocb_jax.coupling.cells import Cells, cells_of_table
from bocb_jax.coupling.costs import costs_of, diverged, general_advice
from bocb_jax.coupling.interaction import interaction_test
from bocb_jax.coupling.replicates import Replicates, replicates_of, tables_by_backbone
from bocb_jax.coupling.score_table import ScoreTable, regret_of
from bocb_jax.coupling.significance import holm
from bocb_jax.coupling.starts import StartsTest, starts_test
from bocb_jax.paper.categories import category, is_sgd_like, to_opt

LEVEL = 0.05  # of all backbones together


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over cells or backbones, with its interval; NaN where the noise is not known."""

    value: float
    low: float
    high: float
    p_value: float | None  # that it is 0; None without noise, or where it is no test
    cells: int  # over which the mean is


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """What a table says about the optimizer of pre-training as a third factor.

    All distances are in the unit of the score; larger is better.
    """

    # A row for each backbone, optimizer of pre-training and optimizer: backbone, pretrained_with,
    # optimizer, score (mean), regret (in its backbone and pretrained_with), n (runs), starts.
    cells: pandas.DataFrame
    # Index backbone: pretrained_with (tuple), starts, by (see `Replicates`), optimizers,
    # interaction (its standard deviation, noise subtracted where known) with _low and _high,
    # interaction_without_failures, share, share_without_failures (of the interaction in the
    # variance between cells), failing (tuple), p_value, p_holm (None without noise), test (in
    # words), match (what the same optimizer gains over what both add up to) with _low and _high.
    backbones: pandas.DataFrame
    # A row for each backbone and optimizer of pre-training: the best for fine-tuning and what it
    # reaches (best, best_score), within (optimizers at most `table.equal` behind it) of n,
    # sgd_like, adaptive (what the best of each kind is behind; NaN without one), general (the
    # optimizer that loses least under the other optimizers of pre-training), its price with _low
    # and _high, and fails (whether it diverged: the price is that of a failure); own (the optimizer
    # of pre-training, where it also fine-tuned), own_score, own_regret, other (the best of the
    # others), gain of own over other with _low and _high.
    columns: pandas.DataFrame
    gain: Mean  # of `columns`
    price: Mean  # of `columns`, of what does not fail
    match: Mean  # of `backbones`
    # The optimizer of pre-training that transfers best under its own best fine-tuning. Index
    # backbone: pretrained_with, optimizer, score, second, lead with _low and _high.
    transfers_best: pandas.DataFrame
    by_starts: StartsTest | None  # None where no optimizer pre-trained two sets of weights
    # "yes": an interaction is shown on at least one backbone; "not shown"; "not known" without
    # repetitions.
    verdict: str
    helps: str  # whether the same optimizer helps: "yes", "no" (it harms), "not shown", "not known"
    confidence: float


def analyze_pretraining(
    table: ScoreTable, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Pretraining | None:
    """Return what a table says about the optimizer of pre-training.

    Args:
      table: whose runs have `replicates.START_COLUMNS`.
      confidence: of the intervals.
      resamples: draws of the tests.
      seed: of the draws.

    Returns:
      None where no backbone starts from weights of two optimizers at least.
    """
    tables = tables_by_backbone(table)
    if not tables:
        return None
    options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    repeated = {name: replicates_of(part) for name, part in tables.items()}
    rows = {name: _backbone(part, **options) for name, part in repeated.items()}
    backbones = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("backbone")
    backbones["p_holm"] = holm(backbones["p_value"])
    number = sum(len(part.within.backbones) for part in repeated.values())
    together = 1 - (1 - confidence) / number
    columns = pandas.DataFrame(
        [
            row
            for name, part in repeated.items()
            for row in _columns(name, part, confidence, together)
        ]
    )
    whole = [f"_{what}_{end}" for what in ("price", "gain") for end in ("low", "high")]
    columns = columns.reindex(columns=[*_COLUMNS, *whole])
    by_starts = starts_test(tables, resamples=max(resamples, 200), seed=seed)
    match = _pooled(backbones, "match", confidence)
    return Pretraining(
        cells=pandas.concat([_cells(*item) for item in tables.items()], ignore_index=True),
        backbones=backbones.drop(columns=["match_error", "match_df"]),
        columns=columns[_COLUMNS],
        gain=_averaged(columns, "gain"),
        price=_averaged(columns[columns["fails"].ne(True)], "price"),
        match=match,
        transfers_best=_transfers_best(repeated, confidence),
        by_starts=by_starts,
        verdict=_verdict(backbones, by_starts),
        helps=_helps(match),
        confidence=confidence,
    )


def _verdict(backbones: pandas.DataFrame, by_starts: StartsTest | None) -> str:
    found = backbones["p_holm"].dropna()
    if len(found):
        return "yes" if (found < LEVEL).any() else "not shown"
    if by_starts is None or by_starts.least_p >= LEVEL:
        return "not known"
    return "yes" if by_starts.p_value < LEVEL else "not shown"


def _helps(match: Mean) -> str:
    if match.p_value is None:
        return "not known"
    if match.p_value >= LEVEL:
        return "not shown"
    return "yes" if match.value > 0 else "no"


def _cells(backbone: str, table: ScoreTable) -> pandas.DataFrame:
    keys = ["backbone", "optimizer"]
    grouped = table.runs.groupby(keys, sort=False)
    frame = grouped.agg(score=("score", "mean"), n=("score", "count"), starts=("start", "nunique"))
    frame = frame.reset_index().rename(columns={"backbone": "pretrained_with"})
    frame.insert(0, "backbone", backbone)
    regret = regret_of(table.goodness()).stack(future_stack=True)
    at = pandas.MultiIndex.from_frame(frame[["optimizer", "pretrained_with"]])
    frame.insert(4, "regret", regret.reindex(at).to_numpy())
    return frame


# -- one backbone ----------------------------------------------------------------------------------


def _backbone(
    repeated: Replicates, *, confidence: float, resamples: int, seed: int
) -> dict[str, object]:
    """Return a row of `Pretraining.backbones`, and match_error and match_df."""
    table = repeated.within
    options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    failing = margins.failing(regret_of(table.goodness()), table)
    full = decomposition.decompose(table, **options)
    without = decomposition.decompose(table, dropped=failing, **options) if failing else full
    test = interaction_test(table, resamples=resamples, seed=seed)
    return {
        "pretrained_with": tuple(table.backbones),
        "starts": repeated.starts,
        "by": repeated.by,
        "optimizers": len(table.optimizers),
        "interaction": np.nan if full is None else full.interaction_std,
        "interaction_low": _or_nan(None if full is None else full.interaction_std_low),
        "interaction_high": _or_nan(None if full is None else full.interaction_std_high),
        "interaction_without_failures": np.nan if without is None else without.interaction_std,
        "share": np.nan if full is None else full.terms.at["interaction", "share"],
        "share_without_failures": (
            np.nan if without is None else without.terms.at["interaction", "share"]
        ),
        "failing": failing,
        "p_value": np.nan if test is None else test.p_value,
        "test": None if test is None else test.description,
        **_match(table, confidence),
    }


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _match(table: ScoreTable, confidence: float) -> dict[str, float]:
    """Return what a cell gains where both optimizers are the same, beyond what each adds.

    The least-squares coefficient of "the same" in the additive model. Its error is the larger of
    two: that of the moderated noise, and that of the rest of the interaction, without which any
    crossing would look like a gain or a loss of the same optimizer.
    """
    names = ["match", "match_low", "match_high", "match_error", "match_df"]
    cells = cells_of_table(table)
    same = np.array(
        [
            to_opt(table.optimizers[row]) == to_opt(table.backbones[column])
            for row, column in zip(cells.optimizer, cells.backbone, strict=True)
        ],
        float,
    )
    if not same.any():
        return dict.fromkeys(names, np.nan)
    # Means weigh alike here, whatever their runs: a lucky cell of many seeds is no better evidence
    # of what "the same" does than another.
    even = dataclasses.replace(cells, counts=np.ones_like(cells.counts))
    left = _residuals(even, same)
    size = float(left @ left)
    if size < 1e-9:
        return dict.fromkeys(names, np.nan)
    weights = left / size
    value = table.sign * float(weights @ cells.means(cells.values))
    sd, df = _noise(table, cells.optimizer, cells.backbone)
    parts = weights**2 * sd**2 / cells.counts
    error = float(np.sqrt(parts.sum()))
    # Satterthwaite over the distinct estimates: cells that share one are not independent ones.
    shared = pandas.DataFrame({"sd": sd, "df": df, "part": parts}).groupby(["sd", "df"])["part"]
    sums = shared.sum()
    below = float((sums**2 / sums.index.get_level_values("df")).sum()) if len(sums) else 0.0
    degrees = error**4 / below if below > 0 else np.inf
    rest = cells.means(cells.values) - table.sign * value * same
    free = cells.degrees_of_freedom[0] - 1
    if free > 0:
        other = float(np.sqrt((_residuals(even, rest) ** 2).sum() / free / size))
        if not error >= other:
            error, degrees = other, float(free)
    half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error
    return dict(zip(names, [value, value - half, value + half, error, degrees], strict=True))


def _residuals(cells: Cells, values: np.ndarray) -> np.ndarray:
    """Return what remains of (cells,) values after the additive model, all cells weighing alike."""
    columns = np.zeros((len(values), sum(cells.shape)))
    at = np.arange(len(values))
    columns[at, cells.optimizer] = 1
    columns[at, cells.shape[0] + cells.backbone] = 1
    return values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]


def _noise(
    table: ScoreTable, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return standard deviation and degrees of freedom of one repetition in each cell."""
    estimated = noise.estimate_noise(table)
    sd, df = np.full(len(rows), np.nan), np.zeros(len(rows))
    for column, name in enumerate(table.backbones):
        here = columns == column
        names = [table.optimizers[row] for row in rows[here]]
        sd[here], df[here] = noise.noise_of(estimated, name, names)
    return sd, df


# -- one optimizer of pre-training -----------------------------------------------------------------


def _columns(
    backbone: str, repeated: Replicates, confidence: float, together: float
) -> list[dict[str, object]]:
    """Return the rows of `Pretraining.columns` of one backbone.

    Args:
      backbone: its name.
      repeated: its table.
      confidence: of price_low, price_high, gain_low and gain_high, each by itself.
      together: of the same names that begin with "_", which are for means of all.
    """
    table = repeated.within
    costs, goodness, counts = costs_of(table), table.goodness(), table.counts()
    failed = diverged(table)
    estimated, scores = noise.estimate_noise(table), repeated.raw.matrix()
    groups = pandas.Series(table.backbones, index=table.backbones)
    chosen = general_advice(costs.to_numpy()[None], groups)[0]
    kinds = _kinds(table.optimizers)
    rows = []
    for column, name in enumerate(table.backbones):
        here = goodness[name].dropna()
        if here.empty:
            continue
        regret = here.max() - here
        row: dict[str, object] = {"backbone": backbone, "pretrained_with": name}
        row |= {"best": here.idxmax(), "best_score": scores.at[here.idxmax(), name]}
        row |= {"within": int((regret <= table.equal + 1e-9).sum()), "n": len(here)}
        row |= {kind: regret.reindex(names).min() for kind, names in kinds.items()}
        cells = _Column(
            here, counts.loc[here.index, name], *noise.noise_of(estimated, name, here.index)
        )
        general = str(costs.index[chosen[column]]) if chosen[column] >= 0 else None
        own = next((o for o in here.index if to_opt(o) == to_opt(name)), None)
        if general is not None:
            row |= {"general": general, "price": costs.at[general, name]}
            row["fails"] = bool(failed.at[general, name])
        if own is not None and len(here) > 1:
            row |= {"own": own, "own_score": scores.at[own, name], "own_regret": regret[own]}
            row |= {"other": here.drop(own).idxmax(), "gain": here[own] - here.drop(own).max()}
        for start, level in (("", confidence), ("_", together)):
            if general is not None and general in here.index:
                row |= _ends(f"{start}price", cells.regret(general, level))
            if own is not None and len(here) > 1:
                row |= _ends(f"{start}gain", cells.gain(own, level))
        rows.append(row)
    return rows


_COLUMNS = [
    "backbone", "pretrained_with", "best", "best_score", "within", "n", "sgd_like", "adaptive",
    "general", "price", "price_low", "price_high", "fails",
    "own", "own_score", "own_regret", "other", "gain", "gain_low", "gain_high",
]  # fmt: skip


def _ends(name: str, ends: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": ends[0], f"{name}_high": ends[1]}


@dataclasses.dataclass(frozen=True)
class _Column:
    """The optimizers after one pre-training, with the noise of one repetition."""

    means: pandas.Series  # larger is better
    n: pandas.Series
    sd: np.ndarray
    df: np.ndarray

    def regret(self, optimizer: str, confidence: float) -> tuple[float, float]:
        """Return an interval of what an optimizer is behind the best."""
        n = self.n.to_numpy(float)
        ends = best.regret_intervals(self.means.to_numpy(), n, self.sd, self.df, confidence)
        at = self.means.index.get_loc(optimizer)
        return float(ends[0][at]), float(ends[1][at])

    def gain(self, optimizer: str, confidence: float) -> tuple[float, float]:
        """Return an interval of what an optimizer is ahead of the best of the others.

        From simultaneous intervals of its difference to each (Dunnett 1955), so that it holds
        however the best of the others was found.
        """
        parts = self.sd**2 / self.n.to_numpy(float)
        if not np.isfinite(parts).all():
            return np.nan, np.nan
        at = self.means.index.get_loc(optimizer)
        others = np.arange(len(parts)) != at
        ahead = self.means.iloc[at] - self.means.to_numpy()[others]
        error = np.sqrt(parts[at] + parts[others])
        pairs = best.degrees_of_pairs(parts, self.sd, self.df)[at, others]
        level, k = (1 + confidence) / 2, len(ahead)
        wide = [best.dunnett_quantile(level, k, float(df), 0.0) for df in pairs] * error
        return float((ahead - wide).min()), float((ahead + wide).min())


def _kinds(optimizers: list[str]) -> dict[str, list[str]]:
    """Return the optimizers that step as SGD does, and those with adaptive rates."""
    known = {name: category(to_opt(name))[0] for name in optimizers}
    return {
        "sgd_like": [name for name in optimizers if is_sgd_like(to_opt(name), known[name])],
        "adaptive": [name for name in optimizers if known[name] == "b"],
    }


def _averaged(columns: pandas.DataFrame, what: str) -> Mean:
    """Return the mean of price or gain, with an interval by Bonferroni."""
    known = columns[columns[what].notna()]
    if known.empty:
        return Mean(np.nan, np.nan, np.nan, None, 0)
    low, high = (float(known[f"_{what}_{end}"].mean(skipna=False)) for end in ("low", "high"))
    return Mean(float(known[what].mean()), low, high, None, len(known))


def _pooled(backbones: pandas.DataFrame, what: str, confidence: float) -> Mean:
    """Return the mean over backbones of an estimate with its standard error."""
    rows = backbones[backbones[what].notna()]
    if rows.empty:
        return Mean(np.nan, np.nan, np.nan, None, 0)
    value, number = float(rows[what].mean()), len(rows)
    error = float(np.sqrt((rows[f"{what}_error"] ** 2).sum(skipna=False))) / number
    if not error > 0:
        return Mean(value, np.nan, np.nan, None, number)
    below = float((rows[f"{what}_error"] ** 4 / rows[f"{what}_df"]).sum()) / number**4
    degrees = error**4 / below if below > 0 else np.inf
    half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error
    p_value = float(2 * stats.t.sf(abs(value) / error, degrees))
    return Mean(value, value - half, value + half, p_value, number)


# -- which pre-training transfers best -------------------------------------------------------------


def _transfers_best(repeated: dict[str, Replicates], confidence: float) -> pandas.DataFrame:
    rows = {}
    for name, part in repeated.items():
        table = part.raw
        tops = table.goodness().max().dropna().sort_values(ascending=False, kind="stable")
        if len(tops) < 2:
            continue
        first, second = tops.index[:2]
        optimizer = table.goodness()[first].idxmax()
        low, high = _lead(table, first, confidence)
        rows[name] = {
            "pretrained_with": first,
            "optimizer": optimizer,
            "score": table.matrix().at[optimizer, first],
            "second": second,
            "lead": tops.iloc[0] - tops.iloc[1],
            "lead_low": low,
            "lead_high": high,
        }
    names = ["pretrained_with", "optimizer", "score", "second", "lead", "lead_low", "lead_high"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("backbone")


def _lead(table: ScoreTable, first: str, confidence: float) -> tuple[float, float]:
    """Return an interval of the best score after one pre-training minus that after all others.

    From the studentized range over all cells, so that it holds although the best cells were found
    by looking.
    """
    cells = cells_of_table(table)
    means = table.sign * cells.means(cells.values)
    sd, df = _noise(table, cells.optimizer, cells.backbone)
    if not np.isfinite(sd).all():
        return np.nan, np.nan
    parts = sd**2 / cells.counts
    here = cells.backbone == table.backbones.index(first)
    degrees = float(max(1, np.floor(df.min())))
    quantile = best.range_quantile(confidence, len(means), degrees) / np.sqrt(2)
    error = quantile * np.sqrt(parts[here][:, None] + parts[~here][None, :])
    ahead = means[here][:, None] - means[~here][None, :]
    # The best of one side is ahead of the best of the other by max over one, min over the other.
    return float((ahead - error).min(axis=1).max()), float((ahead + error).max(axis=0).min())
