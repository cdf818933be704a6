"""A report in sentences: the verdict, each backbone and optimizer, the statistics behind it.

Sentences say what goes with what in this table, and never why: comparing different networks shows
no cause.
"""

from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.rounding import p_text
from bocb_jax.report import advice, pretraining, wording
from bocb_jax.report.headline import headline
from bocb_jax.report.style import label
from bocb_jax.report.wording import (
    counted,
    is_known,
    listed,
    plural,
    sentence,
)

_TERMS = ("backbone", "optimizer", "interaction")


def verdict(analysis: Analysis) -> list[str]:
    """Return what the whole table shows in a few sentences, the most important first."""
    return [*headline(analysis), *pretraining.sentences(analysis)[:1]]


def warnings(analysis: Analysis) -> list[str]:
    """Return what the data cannot say, a sentence each."""
    return list(dict.fromkeys([*analysis.warnings, *analysis.table.notes]))


def backbone_sentence(analysis: Analysis, name: str) -> str:
    """Return what to use on a backbone, what that is worth, and what to avoid."""
    return advice.advise(analysis, name).sentence


def statistics(analysis: Analysis) -> list[str]:
    """Return the tests and shares behind the verdict, a sentence each."""
    found = [
        _shares(analysis),
        _interaction(analysis),
        _outliers(analysis),
        _categories(analysis),
        _ranks(analysis),
        "" if analysis.budget is None else sentence(analysis.budget.verdict),
        *pretraining.sentences(analysis)[1:],
    ]
    return [text for text in found if text]


def _shares(analysis: Analysis) -> str:
    frame = analysis.shares
    frame = frame[frame[list(_TERMS)].notna().all(axis=1)]
    texts = []
    for (_, cells), rows in frame.groupby(["failing", "cells"], sort=False):
        dropped = rows["dropped"].iloc[0]
        parts = [
            f"{wording.listed(f'{100 * row[term]:.0f} %' for term in _TERMS)} in {row['scale']}"
            for _, row in rows.iterrows()
        ]
        start = f"Without {listed(wording.labels(dropped), 5)}" if dropped else "With all"
        texts.append(f"{start} ({cells} cells): {listed(parts)}")
    if not texts:
        return ""
    return (
        "Shares of backbone, optimizer and their pairing (the coupling) in the variance between "
        f"cells. {'. '.join(texts)}."
    )


def _interaction(analysis: Analysis) -> str:
    test = analysis.interaction
    if test is None:
        return ""
    return (
        f"Interaction of backbone and optimizer: {p_text(test.p_value)} over "
        f"{counted(test.cells, 'cell')}. {sentence(test.description)}"
    )


def _outliers(analysis: Analysis) -> str:
    outliers = analysis.outliers
    if not outliers.cells:
        return ""
    text = f"Outliers by the rule {outliers.rule}: {outliers.count} of {outliers.cells} cells"
    counts = analysis.optimizers["outliers"].sort_values(ascending=False, kind="stable")
    counts = counts[counts > 0]
    if len(counts):
        most = [f"{label(name)} on {int(count)}" for name, count in counts.head(3).items()]
        text += f" ({listed(most)}{' and others' if len(counts) > 3 else ''})"
    failed = int(analysis.table.failed().to_numpy().sum())
    if failed:
        text += f"; in {failed} {plural(failed, 'cell')} no run finished"
    return text + "."


def _categories(analysis: Analysis) -> str:
    section = analysis.category_contrast
    if section is None or not is_known(section.overall):
        return ""
    gains, table = section.contrasts["contrast"].dropna(), analysis.table
    overall, low, high = (
        f"{table.distances(value):+z.2f}" if is_known(value) else ""
        for value in (section.overall, section.overall_low, section.overall_high)
    )
    text = (
        f"Category {section.first} (median of {len(section.first_optimizers)}) against category "
        f"{section.second} (median of {len(section.second_optimizers)}): {overall} "
        f"{table.distance_unit} over {counted(len(gains), 'backbone')}"
    )
    if low and high:
        text += f" ({low} to {high})"
    text += f", ahead on {int((gains > 0).sum())}"
    if is_known(section.differs_p):
        text += f"; that it differs between backbones: {p_text(section.differs_p)}"
    return text + "."


def _ranks(analysis: Analysis) -> str:
    test, nemenyi = analysis.friedman, analysis.nemenyi
    if test is None or not is_known(test.p_value):
        return ""
    text = (
        f"Ranks of {test.optimizers} optimizers over {test.backbones} backbones: Friedman "
        f"{p_text(test.p_value)}, agreement of the backbones (Kendall's W) {test.kendall_w:.2f}"
    )
    if is_known(test.family_p_value):
        text += f"; over {test.families} families of backbones {p_text(test.family_p_value)}"
    if nemenyi is not None and len(nemenyi.mean_ranks):
        ranks = nemenyi.mean_ranks
        others = int((ranks - ranks.iloc[0] <= nemenyi.critical_difference).sum()) - 1
        text += (
            f". {label(ranks.index[0])} has the best mean rank, {ranks.iloc[0]:.1f}, and "
            f"{counted(others, 'other')} {'is' if others == 1 else 'are'} within the critical "
            f"difference of {nemenyi.critical_difference:.1f}"
        )
    return text + "."


def data(analysis: Analysis) -> str:
    """Return what the table holds: how its source was understood, and how many cells are known."""
    table = analysis.table
    counts = table.counts()
    filled = int((counts > 0).to_numpy().sum())
    text = table.described or (
        f"{counted(len(table.runs), 'value')} of {table.score} from {table.source}: "
        f"{counted(len(table.backbones), 'backbone')} x "
        f"{counted(len(table.optimizers), 'optimizer')}"
    )
    text += f"; {filled} of {counts.size} cells have a score"
    single = int((counts == 1).to_numpy().sum())
    if single:
        text += ", each of one run" if single == filled else f", {single} of one run"
    if table.trials is not None:
        text += f"; {len(table.trials)} trials of learning rate and weight decay"
    return text + "."
