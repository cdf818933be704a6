"""Which optimizer to try first on a backbone, with which learning rate, and on what evidence."""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np
import pandas

from bocb_jax import paper
from bocb_jax.coupling.costs import (
    LEAST_BACKBONES,
    cap_of,
    costs_of,
    diverged,
    far_behind,
    general_advice,
)
from bocb_jax.coupling.portfolio import portfolio
from bocb_jax.coupling.rounding import significant
from bocb_jax.coupling.score_table import ScoreTable, regret_of
from bocb_jax.errors import UserError
from bocb_jax.paper import taxonomy
from bocb_jax.paper.categories import to_opt
from bocb_jax.paper.taxonomy import series_of, to_model

PLAIN = (
    "The noise between seeds is not known here, so optimizers come in the order of their scores."
)
SHRUNK = (
    "Seeds differ by a standard deviation of {sd} {unit} here: scores are drawn towards how the "
    "optimizers do on the other backbones as far as that noise warrants, and ordered by the result."
)
OVERALL = "Optimizers come in the order of their mean regret."


@dataclasses.dataclass(frozen=True)
class Choice:
    """One optimizer to try."""

    optimizer: str
    score: float  # mean over seeds, as measured; NaN where the advice is for all backbones
    behind: float  # distance to the best of the backbone, in the advice's unit; NaN likewise
    seeds: int  # number of figures behind `score`
    mean_regret: float  # over all backbones of the table, in the unit
    worst_regret: float
    worst_backbone: str
    backbones: int  # over which `mean_regret` is taken
    learning_rate: float | None
    weight_decay: float | None
    rates: str  # where the two come from, in words


@dataclasses.dataclass(frozen=True)
class Advice:
    """What a table recommends for one backbone."""

    model: str  # as it was asked for
    backbone: str | None  # whose scores these are; None: all backbones together
    exact: bool  # whether that is the backbone that was asked for
    why: str  # which scores the advice rests on, in a sentence
    choices: tuple[Choice, ...]  # the best first; none of those to avoid
    avoid: tuple[str, ...]  # optimizers whose runs failed or that are far behind, in words
    candidates: int  # optimizers with a score
    general: str | None  # the best optimizer on other families; None where it is not known
    price: float | None  # what that one costs on the backbone, in the unit
    general_fails: bool  # whether it diverged there
    noise: float | None  # standard deviation between seeds on the backbone; None if not known
    source: str
    unit: str  # of distances and noise: that of the table, or "%" of the best where it is relative
    rule: str


def recommend(table: ScoreTable, model: str, *, most: int = 3) -> Advice | None:
    """Return what to try first on a backbone, from a table of scores.

    A backbone that the table lacks gets the advice for its relative there, and one without a
    relative the optimizers with the lowest mean regret over all backbones; `why` says so.

    Args:
      table: any scores, published or your own.
      model: a backbone, as the table, the paper or this project names it.
      most: largest number of choices.

    Returns:
      None where the table has no two optimizers to choose among.
    """
    regret = regret_of(table.goodness())
    backbone, exact, why = stand_in(table, model)
    if backbone is not None and regret[backbone].count() < 2:
        backbone, exact = None, False
        why = f"{model} has fewer than two optimizers with a score here, so all backbones stand in."
    noise, errors = (None, None) if backbone is None else _noise_on(table, backbone)
    noise = None if noise is None else table.distances(noise)
    if backbone is None:
        column, rule = _overall(table, regret), OVERALL
    elif noise is None or errors is None or regret.notna().any().sum() < 2:
        column, rule = regret[backbone].dropna(), PLAIN
    else:
        column = shrink(costs_of(table), backbone, errors, cap=cap_of(table.equal))
        rule = SHRUNK.format(sd=significant(noise, 2), unit=table.distance_unit)
    if len(column) < 2:
        return None
    avoid, failed = dict[str, str](), list[str]()
    if backbone is not None:
        avoid = _avoid(table, regret[backbone], column)
        failed = [f"{o} (no run finished)" for o, none in table.failed()[backbone].items() if none]
    order = [name for name in column.sort_values(kind="stable").index if name not in avoid][:most]
    general, price = (None, None) if backbone is None else _general(table, backbone)
    fails = general is not None and bool(diverged(table).at[general, backbone])
    return Advice(
        model=model,
        backbone=backbone,
        exact=exact,
        why=why,
        choices=tuple(_choice(table, regret, backbone, name) for name in order),
        avoid=(*failed, *avoid.values()),
        candidates=len(column),
        general=general,
        price=None if price is None else table.distances(price),
        general_fails=fails,
        noise=noise,
        source=table.source,
        unit=table.distance_unit,
        rule=rule,
    )


def _overall(table: ScoreTable, regret: pandas.DataFrame) -> pandas.Series:
    """Return the mean costs of optimizers with a score, known on at least half the backbones."""
    costs = costs_of(table).dropna(axis=1, how="all")
    told = regret.notna().any(axis=1) & (costs.notna().mean(axis=1) >= 0.5)
    return costs[told].mean(axis=1)


def _noise_on(table: ScoreTable, backbone: str) -> tuple[float | None, pandas.Series | None]:
    """Return the standard deviation of a run on a backbone, and the variances of its means.

    Both are None where the noise is not known.
    """
    spread = "spread" in table.runs and table.runs["spread"].notna().any()
    if table.noise is None and not spread and table.one_seed:
        return None, None
    # Imported here, because scipy takes half a second, and published tables do without.
    from bocb_jax.coupling.noise import estimate_noise, noise_of

    noise = estimate_noise(table)
    usual = float(noise.at[backbone, "sd"])
    if not np.isfinite(usual):
        return None, None
    counts = table.counts()[backbone]
    counts = counts[counts > 0]
    sd, _ = noise_of(noise, backbone, counts.index)
    return usual, sd**2 / counts


def shrink(
    costs: pandas.DataFrame, backbone: str, error: pandas.Series, *, cap: float | None = None
) -> pandas.Series:
    """Return the regrets on a backbone, drawn towards those on the others by empirical Bayes.

    What an optimizer does on the other backbones predicts what it does here, but for a difference
    of its own. A regret is the prediction plus the part of the observed difference that is not
    noise: own variance / (own variance + variance of the mean).

    Args:
      costs: regrets, optimizers x backbones, two backbones at least.
      backbone: one of them.
      error: variances of the means there, of the optimizers that have one.
      cap: what a regret on another backbone counts at most; None: all that it is.

    Returns:
      A figure for each of these optimizers; lower is better.
    """
    here = costs.loc[error.index, backbone]
    elsewhere = costs.loc[error.index].drop(columns=backbone).clip(upper=cap).mean(axis=1)
    elsewhere = elsewhere.fillna(elsewhere.median()).fillna(0.0)
    difference = here - elsewhere
    usual = difference.median()
    own = max(float(((difference - usual) ** 2).mean() - error.mean()), 0.0)
    weight = (own / (own + error)).where(error > 0, 1.0)
    return elsewhere + usual + weight * (difference - usual)


def _general(table: ScoreTable, backbone: str) -> tuple[str | None, float | None]:
    """Return the optimizer that is best on other families, and what it costs on a backbone."""
    costs = costs_of(table)
    told = costs.notna().sum() >= 2
    if told.sum() < LEAST_BACKBONES or not told[backbone]:
        return None, None
    families = _families(table.backbones).where(told)
    row = general_advice(costs.to_numpy()[None], families)[0][costs.columns.get_loc(backbone)]
    if row < 0:
        return None, None
    price = float(costs.iat[row, costs.columns.get_loc(backbone)])
    return str(costs.index[row]), price if np.isfinite(price) else None


def _families(backbones: list[str]) -> pandas.Series:
    """Return the family of every backbone; one that the paper does not know is its own."""
    known = {name: taxonomy.find(name) for name in backbones}
    return pandas.Series({name: of.family if of else name for name, of in known.items()})


def stand_in(table: ScoreTable, model: str) -> tuple[str | None, bool, str]:
    """Return the table's backbone for a model, whether it is the model itself, and a sentence."""
    known = {to_model(name): name for name in reversed(table.backbones)}
    known |= {name: name for name in table.backbones}  # names as the table has them come first
    base = to_model(model)
    for name in (model, base):
        if name in known:
            return known[name], True, f"The scores of {_both(model, known[name])} itself."
    series = series_of(base.lower())
    relatives = [
        name for name in table.backbones if series and series_of(to_model(name).lower()) == series
    ]
    if relatives:
        # Among several the most similar name: convnextv2_s is nearer to convnextv2_t.
        name = max(relatives, key=lambda name: _similarity(base, to_model(name)))
        return name, False, f"{model} is not in the table; {name} of the same family stands in."
    return None, False, (
        f"Neither {model} nor, judging by names, a backbone of its family is in the table: this "
        f"advice is over all {len(table.backbones)} backbones. `bocb probe` measures your own."
    )  # fmt: skip


def _similarity(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()


def _both(model: str, name: str) -> str:
    return model if model == name else f"{model} ({name})"


def _choice(table: ScoreTable, regret: pandas.DataFrame, backbone: str | None, name: str) -> Choice:
    row = regret.loc[name].dropna()
    cell = None
    if backbone is not None:
        runs = table.runs
        cell = runs[(runs["backbone"] == backbone) & (runs["optimizer"] == name)]
    rate, decay, rates = _rates(table, cell, backbone, name)
    return Choice(
        optimizer=name,
        score=np.nan if cell is None else float(table.as_measured(cell["score"].mean())),
        behind=np.nan if backbone is None else table.distances(regret.at[name, backbone]),
        seeds=0 if cell is None else int(cell["score"].notna().sum()),
        mean_regret=table.distances(row.mean()),
        worst_regret=table.distances(row.max()),
        worst_backbone=str(row.idxmax()),
        backbones=len(row),
        learning_rate=rate,
        weight_decay=decay,
        rates=rates,
    )


def _rates(
    table: ScoreTable, cell: pandas.DataFrame | None, backbone: str | None, optimizer: str
) -> tuple[float | None, float | None, str]:
    """Return learning rate and weight decay to start with, and where they come from in words."""
    if cell is not None and cell["learning_rate"].notna().any():
        best = cell.sort_values("score", ascending=not table.higher_is_better, kind="stable")
        best = best[best["learning_rate"].notna()].iloc[0]
        decay = float(best["weight_decay"]) if np.isfinite(best["weight_decay"]) else None
        return float(best["learning_rate"]), decay, f"tuned on {backbone}"
    stands = paper.STAND_INS.get(to_model(backbone)) if backbone is not None else None
    if stands is not None:
        tuned = paper.tuned(stands, to_opt(optimizer))
        if tuned is not None:
            return tuned.learning_rate, tuned.weight_decay, f"the paper's for {tuned.backbone}"
    runs = table.runs[(table.runs["optimizer"] == optimizer) & table.runs["learning_rate"].notna()]
    if len(runs):
        per_backbone = runs.drop_duplicates(["backbone", "optimizer"])
        counts = per_backbone["learning_rate"].value_counts()
        rate = float(counts.index[counts == counts.max()].min())
        decays = per_backbone["weight_decay"].value_counts()
        decay = float(decays.index[decays == decays.max()].min()) if len(decays) else None
        words = f"the most frequent on {len(per_backbone)} backbones"
        return rate, decay, words
    return None, None, "not recorded"


def _avoid(table: ScoreTable, regret: pandas.Series, column: pandas.Series) -> dict[str, str]:
    """Return in words which optimizers are far behind on a backbone, the worst first.

    Args:
      table: the scores.
      regret: of every optimizer there.
      column: what they are ordered by. What is far behind in the scores alone may be noise.
    """
    far = column.index[far_behind(column - column.min(), table.equal)]
    behind = regret[far].sort_values(ascending=False)
    behind = behind[far_behind(behind, table.equal)]
    unit = " %" if table.relative else ""
    return {
        str(name): f"{name} ({significant(table.distances(by))}{unit} behind)"
        for name, by in behind.items()
    }


def at_budget(table: ScoreTable, trials: int) -> ScoreTable:
    """Return the table that a search of so many trials for each pair would be expected to give.

    Raises:
      UserError: the table has no trials of a search.
    """
    from bocb_jax.coupling.tuning import best_at

    found = best_at(table, trials)
    if found is None or found.empty:
        raise UserError(
            f"{table.source} holds no trials of a search, so nothing is known of a budget of "
            f"{trials}; a folder of runs of `bocb sweep` does."
        )
    tuned = table.runs.drop_duplicates(["backbone", "optimizer"])
    tuned = tuned[["backbone", "optimizer", "learning_rate", "weight_decay"]]
    runs = found[["backbone", "optimizer"]].merge(tuned, how="left")
    runs = runs.assign(seed=0, score=found["expected_best"].to_numpy(), status="finished")
    fewest = int(found["trials"].min())
    words = f"best of {trials} trials" + (
        f", or of {fewest} where no more" if fewest < trials else ""
    )
    return dataclasses.replace(
        table,
        runs=runs.reindex(columns=table.runs.columns),
        trials=None,
        noise=None,
        source=f"{table.source}: expected {words}, on the validation split",
    )


@dataclasses.dataclass(frozen=True)
class Portfolio:
    """The best set of a few optimizers to try."""

    optimizers: tuple[str, ...]
    mean: float  # regret that remains with the best of them, over backbones, in the unit
    worst: float
    worst_backbone: str
    left_out: float | None  # its mean on families left out of the choice
    left_out_worst: float | None
    backbones: int
    here: float | None  # what remains on the backbone that was asked for
    best_here: str | None  # and with which of them
    source: str
    unit: str


def choose_portfolio(table: ScoreTable, size: int, model: str | None = None) -> Portfolio | None:
    """Return which few optimizers to try.

    Args:
      table: any scores.
      size: how many optimizers; fewer are returned where nothing is lost with them.
      model: a backbone, for what remains there.

    Returns:
      None where no two optimizers can be compared, or fewer than `size` are known on half of the
      backbones.
    """
    costs = costs_of(table)
    if (costs.notna().sum() < 2).all():
        return None
    sets = portfolio(costs, _families(table.backbones), largest=size)
    if sets.empty or (size not in sets.index and sets["worst"].iloc[-1] > 1e-9):
        return None
    row = sets.iloc[-1]
    here, best = None, None
    backbone = None if model is None else stand_in(table, model)[0]
    if backbone is not None:
        column = costs.loc[list(row["optimizers"]), backbone].dropna()
        if len(column):
            here, best = table.distances(column.min()), str(column.idxmin())
    known = bool(np.isfinite(row["left_out"]))
    return Portfolio(
        optimizers=row["optimizers"],
        mean=table.distances(row["mean"]),
        worst=table.distances(row["worst"]),
        worst_backbone=str(row["worst_backbone"]),
        left_out=table.distances(row["left_out"]) if known else None,
        left_out_worst=table.distances(row["left_out_worst"]) if known else None,
        backbones=int(costs.notna().any().sum()),
        here=here,
        best_here=best,
        source=table.source,
        unit=table.distance_unit,
    )


def portfolio_sentences(found: Portfolio) -> Sequence[str]:
    """Return which optimizers to try in words."""
    *first, last = found.optimizers
    names = f"{', '.join(first)} and {last}" if first else last
    many = f"the best of them is {found.mean:.2f}" if first else f"it is {found.mean:.2f}"
    lines = [
        f"Try {names}: over {found.backbones} backbones, {many} {found.unit} behind the best on "
        f"average, {found.worst:.2f} at worst ({found.worst_backbone})."
    ]
    if found.left_out is not None:
        lines.append(
            "On families of backbones that had no part in the choice: "
            f"{found.left_out:.2f} on average, {found.left_out_worst:.2f} at worst."
        )
    if found.here is not None:
        lines.append(f"On the backbone asked for: {found.here:.2f} with {found.best_here}.")
    return [*lines, f"Source: {found.source}."]


def sentences(advice: Advice) -> Sequence[str]:
    """Return the advice in words: what to try first, with which values, and on what evidence."""
    unit = advice.unit
    first, *others = advice.choices
    lines = [f"Try {first.optimizer} first{_with_rates(first)}."]
    if np.isfinite(first.score):
        best = (
            "the best"
            if first.behind == 0
            else f"{significant(first.behind)} {unit} behind the best"
        )
        lines.append(
            f"Evidence: {significant(first.score, 4)} on {advice.backbone}, {best} of "
            f"{advice.candidates} optimizers, n = {first.seeds} "
            f"{'figure' if first.seeds == 1 else 'figures'}."
        )
    lines += _price_sentence(advice)
    overall = (
        f"on average {significant(first.mean_regret)} {unit} behind the best, at worst "
        f"{significant(first.worst_regret)} ({first.worst_backbone})"
    )
    overall = "the best on each" if first.worst_regret == 0 else overall
    if first.backbones > 1:
        lines.append(f"Over {first.backbones} backbones it is {overall}.")
    for choice in others:
        behind = f"{significant(choice.behind)} {unit} behind the best, n = {choice.seeds}"
        if not np.isfinite(choice.behind):
            behind = f"mean regret {significant(choice.mean_regret)} {unit}"
            behind += f", n = {choice.backbones} backbones"
        lines.append(f"Then {choice.optimizer}{_with_rates(choice)}: {behind}.")
    if advice.avoid:
        lines.append(f"Avoid here: {', '.join(advice.avoid[:6])}.")
    return [*lines, advice.why, advice.rule, f"Source: {advice.source}."]


def _price_sentence(advice: Advice) -> list[str]:
    """Return what general advice would cost; empty where that is not known."""
    if advice.general is None or advice.price is None:
        return []
    start = f"General advice would be {advice.general}, the best on other families of backbones"
    if advice.general_fails:
        return [f"{start}: it diverged here."]
    if advice.price < 0.005:
        return [f"{start}: it costs nothing here."]
    return [f"{start}: it costs {significant(advice.price)} {advice.unit} here."]


def _with_rates(choice: Choice) -> str:
    if choice.learning_rate is None:
        return ""
    text = f" with learning rate {choice.learning_rate:g}"
    if choice.weight_decay is not None:
        text += f" and weight decay {choice.weight_decay:g}"
    return f"{text} ({choice.rates})"
