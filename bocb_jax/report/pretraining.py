"""What the optimizer of pre-training does to the choice for fine-tuning, in sentences."""

import pandas

from bocb_jax.coupling.pretraining import LEVEL, Mean, Pretraining
from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.rounding import p_text, significant
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.report.style import label
from bocb_jax.report.wording import (
    counted,
    gap,
    is_known,
    labels,
    listed,
    score,
    with_unit,
)


def sentences(analysis: Analysis) -> list[str]:
    """Return what a table shows about the optimizer of pre-training, the answer first.

    Empty where runs do not start from weights of several optimizers.
    """
    found, table = analysis.pretraining, analysis.table
    if found is None:
        return []
    texts = [
        _answer(found, table),
        _weights(found),
        _starts(found),
        _same(found, table),
        _gain(found, table),
        _price(found, table),
        *_best(found, table),
        _kinds(found, table),
    ]
    return [text for text in texts if text]


def _answer(found: Pretraining, table: ScoreTable) -> str:
    """Return whether the one optimizer constrains the other, with the size of the interaction."""
    frame = found.backbones
    if found.verdict == "not known":
        sizes = [
            f"{with_unit(table, row['interaction'])} on {label(name)}"
            for name, row in frame.iterrows()
        ]
        return (
            "Whether the optimizer of pre-training constrains that of fine-tuning is not known: "
            "cells are not repeated, so their interaction (a standard deviation of "
            f"{listed(sizes, 3)}) holds their noise as well."
        )
    if found.verdict == "not shown":
        return (
            "That the optimizer of pre-training constrains that of fine-tuning is not shown: "
            f"their interaction has a standard deviation of {_sizes(frame, table)}."
        )
    shown = frame[frame["p_holm"] < LEVEL] if frame["p_holm"].notna().any() else frame
    rest = frame.drop(index=shown.index)
    text = (
        "The optimizer of pre-training constrains that of fine-tuning: their interaction has a "
        f"standard deviation of {_sizes(shown, table)}"
    )
    if len(rest):
        text += f"; it is not shown on {listed(labels(rest.index), 4)}"
    return text + "."


def _sizes(frame: pandas.DataFrame, table: ScoreTable) -> str:
    texts = []
    for name, row in frame.iterrows():
        text = f"{with_unit(table, row['interaction'])} on {label(name)}"
        inside = []
        if is_known(row["interaction_low"]):
            low, high = (gap(table, row[f"interaction_{end}"]) for end in ("low", "high"))
            inside.append(f"{low} to {high}")
        if is_known(row["p_holm"]):
            inside.append(p_text(row["p_holm"]))
        texts.append(f"{text} ({'; '.join(inside)})" if inside else text)
    return listed(texts, 4)


def _weights(found: Pretraining) -> str:
    """Return for which weights the answer holds, where there is one set for each optimizer."""
    if found.verdict == "not known" or not (found.backbones["by"] == "seeds").any():
        return ""
    return (
        "Each optimizer pre-trained one set of weights for a backbone, so this holds for these "
        "weights: others by the same optimizers may differ. Several seeds of pre-training would "
        "tell."
    )


def _starts(found: Pretraining) -> str:
    test = found.by_starts
    if test is None:
        return ""
    alike = "more alike" if test.p_value < LEVEL else "not shown to be more alike"
    text = (
        f"Which optimizers fine-tune well is {alike} after weights of one optimizer than after "
        f"any others ({counted(test.starts, 'set')} of weights, exact {p_text(test.p_value)} "
        f"of {test.labelings:,} ways to name them"
    )
    if test.least_p >= LEVEL:
        text += f", at least {significant(test.least_p, 2)} with so few"
    return f"{text})."


def _same(found: Pretraining, table: ScoreTable) -> str:
    """Return whether the same optimizer in both helps beyond what each does by itself."""
    match = found.match
    if match.p_value is None:
        return ""
    ends = _between(match, table)
    if found.helps == "not shown":
        return (
            "That fine-tuning gains from the optimizer of pre-training, beyond what each of the "
            f"two does by itself, is not shown: {_signed(match.value, table)} ({ends})."
        )
    verb = "gains" if match.value > 0 else "loses"
    return (
        f"Fine-tuning with the optimizer of pre-training {verb} "
        f"{with_unit(table, abs(match.value))} beyond what each of the two does by itself ({ends}; "
        f"{p_text(match.p_value)})."
    )


def _signed(value: float, table: ScoreTable) -> str:
    sign = "-" if value < 0 else "+"
    return f"{sign}{with_unit(table, abs(value))}"


def _between(mean: Mean, table: ScoreTable) -> str:
    return f"{gap(table, mean.low)} to {gap(table, mean.high)}"


def _gain(found: Pretraining, table: ScoreTable) -> str:
    """Return what comes of fine-tuning with the optimizer of pre-training."""
    rows, gain = found.columns[found.columns["gain"].notna()], found.gain
    if rows.empty:
        return ""
    side = "ahead of" if gain.value >= 0 else "behind"
    text = (
        "Fine-tuning with the optimizer of pre-training ends "
        f"{with_unit(table, abs(gain.value))} {side} the best other one on average of "
        f"{counted(len(rows), 'pre-training')}"
    )
    if is_known(gain.low):
        text += f" ({_between(gain, table)})"
    cells = [
        f"{_signed(row['gain'], table)} after {label(row['pretrained_with'])}"
        for _, row in rows.sort_values("gain").iterrows()
    ]
    ends = [cells[0], cells[-1]] if len(cells) > 1 else []
    return f"{text}{': from ' + ' to '.join(ends) if ends else ''}."


def _price(found: Pretraining, table: ScoreTable) -> str:
    """Return what it costs not to know the optimizer of pre-training, and where that fails."""
    chosen, price = found.columns[found.columns["price"].notna()], found.price
    fails = chosen["fails"].astype(bool)
    rows = chosen[~fails]
    failing = [
        f"{label(row['general'])} after {label(row['pretrained_with'])}"
        for _, row in chosen[fails].iterrows()
    ]
    if rows.empty and failing:
        return (
            "Of the optimizers of fine-tuning that one would choose without knowing that of "
            f"pre-training no run finishes: {listed(failing)}."
        )
    if rows.empty:
        return ""
    worst = rows.loc[rows["price"].idxmax()]
    text = (
        "To choose the optimizer of fine-tuning without knowing that of pre-training costs "
        f"{with_unit(table, price.value)} on average"
    )
    if is_known(price.high):
        text += f" ({_between(price, table)})"
    text += (
        f", and {with_unit(table, worst['price'])} at worst ({label(worst['general'])} after "
        f"{label(worst['pretrained_with'])})"
    )
    own = found.columns["own_regret"].dropna()
    if len(own):
        text += f"; to take the same one costs {with_unit(table, own.mean())} on average"
    if failing:
        text += f"; no run finishes with {listed(failing)}"
    return text + "."


def _best(found: Pretraining, table: ScoreTable) -> list[str]:
    texts = []
    for name, row in found.transfers_best.iterrows():
        text = (
            f"On {label(name)} {label(row['pretrained_with'])} pre-trains best, under its own best "
            f"fine-tuning: {score(table, row['score'])} with {label(row['optimizer'])}, "
            f"{with_unit(table, row['lead'])} ahead of {label(row['second'])}"
        )
        if is_known(row["lead_low"]):
            text += f" ({gap(table, row['lead_low'])} to {gap(table, row['lead_high'])})"
            if row["lead_low"] <= 0:
                text += ", which noise may explain"
        texts.append(text + ".")
    return texts[:4]


def _kinds(found: Pretraining, table: ScoreTable) -> str:
    """Return after which pre-training an SGD-like optimizer keeps up."""
    rows = found.columns[found.columns[["sgd_like", "adaptive"]].notna().all(axis=1)]
    if rows.empty:
        return ""
    parts = [
        f"{gap(table, row['sgd_like'])} after {label(row['pretrained_with'])}"
        + (f" on {label(row['backbone'])}" if rows["backbone"].nunique() > 1 else "")
        for _, row in rows.iterrows()
    ]
    unit = "" if table.relative else f", in {table.unit}"
    return f"What the best SGD-like optimizer is behind the best of all{unit}: {listed(parts, 8)}."
