"""Which optimizer to try first on a backbone, with which learning rate, and on what evidence."""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np
import pandas

from bocb_jax import paper
from bocb_jax.coupling.score_table import ScoreTable, regret_of
from bocb_jax.paper.categories import to_opt
from bocb_jax.paper.taxonomy import series_of, to_model

# Differences in points that other seeds could reverse: among optimizers this close to the best, the
# one that costs least over all backbones comes first. The paper's figures have no spread; seeds of
# one backbone differ by some tenths of a point on CIFAR-100.
TIE = 1.0
RULE = (
    "Optimizers within {tie:g} {unit} of the best count as equal, because other seeds could "
    "reverse their order; among them the one with the lowest mean regret over all backbones comes "
    "first."
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One optimizer to try."""

    optimizer: str
    score: float  # mean over seeds, in the table's unit; NaN where the advice is for all backbones
    behind: float  # distance to the best of the backbone, in the unit; NaN likewise
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
    choices: tuple[Choice, ...]  # the best first
    avoid: tuple[str, ...]  # optimizers whose runs failed or that are far behind, in words
    candidates: int  # optimizers with a score
    source: str
    unit: str
    rule: str


def recommend(
    table: ScoreTable, model: str, *, most: int = 3, tie: float | None = None
) -> Advice | None:
    """Return what to try first on a backbone, from a table of scores.

    A backbone that the table lacks gets the advice for its relative there, and one without a
    relative the optimizers with the lowest mean regret over all backbones; `why` says so.

    Args:
      table: any scores, published or your own.
      model: a backbone, as the table, the paper or this project names it.
      most: number of choices.
      tie: distance that counts as equal, in the table's unit; by default 1 point, and 0.02 of the
        range of the scores in other units.

    Returns:
      None where the table has no two optimizers to choose among.
    """
    goodness = table.goodness()
    regret = regret_of(goodness)
    if tie is None:
        spread = float(np.nanmax(goodness.to_numpy()) - np.nanmin(goodness.to_numpy()))
        tie = TIE if table.unit == "points" else 0.02 * spread
    backbone, exact, why = _stand_in(table, model)
    if backbone is not None and regret[backbone].count() < 2:
        backbone, exact = None, False
        why = f"{model} has fewer than two optimizers with a score here, so all backbones stand in."
    column = regret.mean(axis=1) if backbone is None else regret[backbone]
    column = column.dropna()
    if len(column) < 2:
        return None
    overall = regret.mean(axis=1).reindex(column.index)
    order = list(column.sort_values(kind="stable").index)
    if backbone is not None:
        # Ties by what they cost over all backbones, the others by their distance to the best.
        tied = column <= tie
        keys = overall.where(tied, column)
        order = sorted(column.index, key=lambda name: (not tied[name], keys[name]))
    choices = [_choice(table, regret, backbone, name) for name in order[:most]]
    return Advice(
        model=model,
        backbone=backbone,
        exact=exact,
        why=why,
        choices=tuple(choices),
        avoid=_avoid(table, regret, backbone),
        candidates=len(column),
        source=table.source,
        unit=table.unit,
        rule=RULE.format(tie=tie, unit=table.unit if tie != 1 else table.unit.removesuffix("s")),
    )


def _stand_in(table: ScoreTable, model: str) -> tuple[str | None, bool, str]:
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
        score=np.nan if cell is None else float(cell["score"].mean()),
        behind=np.nan if backbone is None else float(regret.at[name, backbone]),
        seeds=0 if cell is None else int(cell["score"].notna().sum()),
        mean_regret=float(row.mean()),
        worst_regret=float(row.max()),
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


def _avoid(table: ScoreTable, regret: pandas.DataFrame, backbone: str | None) -> tuple[str, ...]:
    """Name what is more than 5 points behind on a backbone, or had no run that finished."""
    if backbone is None:
        return ()
    failed = table.failed()[backbone]
    said = []
    for name, behind in regret[backbone].sort_values(ascending=False).items():
        if failed.get(name, False):
            said.append(f"{name}: no run finished")
        elif table.unit == "points" and behind > 5:
            said.append(f"{name}: {behind:.1f} {table.unit} below")
    return tuple(said)


def sentences(advice: Advice) -> Sequence[str]:
    """Return the advice in words: what to try first, with which values, and on what evidence."""
    first, *others = advice.choices
    lines = [f"Try {first.optimizer} first{_with_rates(first)}."]
    if np.isfinite(first.score):
        best = (
            "the best" if first.behind == 0 else f"{first.behind:.2f} {advice.unit} below the best"
        )
        lines.append(
            f"Evidence: {first.score:.2f} on {advice.backbone}, {best} of {advice.candidates} "
            f"optimizers, n = {first.seeds} {'figure' if first.seeds == 1 else 'figures'}."
        )
    lines.append(
        f"Over {first.backbones} backbones it is on average {first.mean_regret:.2f} {advice.unit} "
        f"below the best, at worst {first.worst_regret:.2f} ({first.worst_backbone})."
    )
    for choice in others:
        behind = f"{choice.behind:.2f} {advice.unit} below the best, n = {choice.seeds}"
        if not np.isfinite(choice.behind):
            behind = f"mean regret {choice.mean_regret:.2f} {advice.unit}"
            behind += f", n = {choice.backbones} backbones"
        lines.append(f"Then {choice.optimizer}{_with_rates(choice)}: {behind}.")
    if advice.avoid:
        lines.append(f"Far behind here: {'; '.join(advice.avoid[:6])}.")
    return [*lines, advice.why, advice.rule, f"Source: {advice.source}."]


def _with_rates(choice: Choice) -> str:
    if choice.learning_rate is None:
        return ""
    text = f" with learning rate {choice.learning_rate:g}"
    if choice.weight_decay is not None:
        text += f" and weight decay {choice.weight_decay:g}"
    return f"{text} ({choice.rates})"
