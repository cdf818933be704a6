"""The verdict of an analysis in plain sentences, each with its numbers and its n.

Sentences say what goes with what in this table, and never why: comparing different networks shows
no cause.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas

from bocb_jax.coupling.decomposition import Decomposition
from bocb_jax.coupling.result import Analysis
from bocb_jax.report.style import label

HOW = {"weak": "loosely coupled", "moderate": "moderately coupled", "strong": "tightly coupled"}


def verdict(analysis: Analysis) -> list[str]:
    """Return what the whole table shows in a few sentences, the most important first.

    Sections that the analysis could not fill are left out; `warnings` names them.
    """
    sentences = [
        _strengths(analysis),
        _shares(analysis),
        _coupling_or_noise(analysis),
        _safest(analysis),
        _outliers(analysis),
        _categories(analysis),
        _ranks(analysis),
        "" if analysis.budget is None else sentence(analysis.budget.verdict),
        _data(analysis),
        strength_sentence(analysis),
    ]
    return [text for text in sentences if text]


def warnings(analysis: Analysis) -> list[str]:
    """Return what the data cannot say, a sentence each."""
    return list(dict.fromkeys([*analysis.warnings, *analysis.table.notes]))


def backbone_sentence(analysis: Analysis, name: str) -> str:
    """Return how strongly one backbone is coupled, "resnet50 is loosely coupled: 14 of 20 ..."."""
    row = analysis.backbones.loc[name]
    count = int(row["n"])
    how = HOW.get(str(row["strength"]))
    start = f"{label(name)} is {how}" if how else f"{label(name)} cannot be placed"
    without = analysis.decomposition_without_failures
    dropped = [label(name) for name in without.dropped] if without is not None else []
    if how and dropped:
        start += f", apart from {_listed(dropped, 4)}"
    if count == 0:
        return f"{start}: it has no score."
    text = (
        f"{start}: {_number(row['within_2'])} of {count} {_plural(count, 'optimizer')} within "
        f"{near(analysis, 1)} of the best "
        f"({label(row['best_optimizer'])}, {_score(analysis, row['best'])})"
    )
    regret = analysis.regret[name].dropna()
    if len(regret) > 1:
        text += f"; the worst, {label(regret.idxmax())}, is {_size(analysis, regret.max())} below"
    if _known(row["coupling_polished"]):
        text += f"; coupling {_size(analysis, row['coupling_polished'])} (root mean square off the "
        text += f"medians{f', without {_listed(dropped, 4)}' if dropped else ''})"
    seeds = row["seeds"]
    if _known(seeds):
        text += f"; {seeds:g} {_plural(seeds, 'seed')} per cell"
    single = int(row["one_seed_cells"])
    if single and seeds != 1:
        text += f", {single} {_plural(single, 'cell')} with one"
    return text + "."


def strength_sentence(analysis: Analysis) -> str:
    """Return what loosely, moderately and tightly coupled mean in this table."""
    return f"Loosely, moderately, tightly: {sentence(analysis.strength_rule)}"


def near(analysis: Analysis, which: int = 0) -> str:
    """Return the distance that counts as close to the best (0) or fairly close (1): "1 point"."""
    size, unit = analysis.near[which], analysis.table.unit
    return f"{size:g} {unit.removesuffix('s') if size == 1 else unit}"


def optimizer_sentence(analysis: Analysis, name: str) -> str:
    """Return what one optimizer costs over the backbones."""
    row = analysis.optimizers.loc[name]
    count = int(row["n"])
    if count == 0:
        return f"{label(name)} has no score."
    worst = analysis.regret.loc[name].dropna()
    return (
        f"{label(name)} is on average {_size(analysis, row['mean_regret'])} below the best of a "
        f"backbone{_bracket(row, 'mean_regret')} and at worst {_size(analysis, worst.max())} "
        f"({label(worst.idxmax())}); within {near(analysis)} of the best on "
        f"{round(row['share_within_1'] * count)} of {count} {_plural(count, 'backbone')}."
    )


def _strengths(analysis: Analysis) -> str:
    groups: dict[str | None, list[str]] = {}
    for name, strength in analysis.backbones["strength"].items():
        groups.setdefault(HOW.get(str(strength)), []).append(label(name))
    parts = []
    total = len(analysis.backbones)
    for how in HOW.values():
        names = groups.get(how, [])
        if names and total <= 3:
            parts.append(f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {how}")
        elif names:
            shown = f" ({_listed(names, 6)})"
            parts.append(f"{len(names)} {'is' if len(names) == 1 else 'are'} {how}{shown}")
    if not parts:
        return ""
    start = "" if total <= 3 else f"Of {total} backbones, "
    return f"{start}{_listed(parts)}, with {_optimizers(analysis)}."


def _optimizers(analysis: Analysis) -> str:
    count = len(analysis.optimizers)
    return f"{count} {_plural(count, 'optimizer')}"


def _shares(analysis: Analysis) -> str:
    full, without = analysis.decomposition, analysis.decomposition_without_failures
    if full is None:
        return ""

    def shares(fit: Decomposition) -> dict[str, str]:
        terms = fit.terms["share"]
        return {name: f"{100 * terms[name]:.0f} %" for name in terms.index if _known(terms[name])}

    share = shares(full)
    low, high = (full.terms.loc["interaction", f"share_{end}"] for end in ("low", "high"))
    interval = f" ({100 * low:.0f} to {100 * high:.0f} %)" if _known(low) and _known(high) else ""
    text = (
        f"Of the variance between the {full.cells} cells, {share.get('backbone')} goes with the "
        f"backbone, {share.get('optimizer')} with the optimizer and {share.get('interaction')}"
        f"{interval} with their pairing: that is the coupling."
    )
    if without is not None and without.dropped:
        share = shares(without)
        names = _listed([label(name) for name in without.dropped], 5)
        text += (
            f" Without {names}, which fail{'s' * (len(without.dropped) == 1)} somewhere: "
            f"{share.get('backbone')}, {share.get('optimizer')} and {share.get('interaction')} "
            f"of {without.cells} cells."
        )
    return text


def _coupling_or_noise(analysis: Analysis) -> str:
    fit = analysis.decomposition
    if fit is None:
        return ""
    if fit.permutation_p is None:
        text = "There is one score per cell, so coupling cannot be told from noise between seeds"
        if fit.tukey is not None and _known(fit.tukey.p_value):
            text += (
                "; Tukey's test detects only coupling that is a product of backbone and optimizer "
                f"effects, and gives {_p(fit.tukey.p_value)}"
            )
        return text + "."
    noise = ""
    if fit.noise_std is not None and _known(fit.noise_std):
        noise = f", against a noise of {_size(analysis, fit.noise_std)} between seeds"
    outcome = (
        "is more than noise" if fit.permutation_p < 1 - analysis.confidence else "may be noise"
    )
    off = _size(analysis, fit.interaction_std)
    return (
        f"The coupling {outcome}: a typical cell is {off} off what "
        f"backbone and optimizer alone would give{noise} ({_p(fit.permutation_p)}, "
        f"{fit.permutations} permutations, {fit.replicated_cells} of {fit.cells} cells with two "
        "seeds or more)."
    )


def _safest(analysis: Analysis) -> str:
    regret = analysis.optimizers["mean_regret"].dropna()
    whole = analysis.optimizers["n"] == analysis.optimizers["n"].max()
    regret = regret[whole.reindex(regret.index)]
    if len(regret) < 2:
        return ""
    return f"The safest single choice here: {optimizer_sentence(analysis, regret.idxmin())}"


def _outliers(analysis: Analysis) -> str:
    outliers = analysis.outliers
    if not outliers.cells:
        return ""
    text = f"Outliers by the rule {outliers.rule}: {outliers.count} of {outliers.cells} cells"
    counts = analysis.optimizers["outliers"].sort_values(ascending=False, kind="stable")
    counts = counts[counts > 0]
    if len(counts):
        most = [f"{label(name)} on {int(count)}" for name, count in counts.head(3).items()]
        text += f" ({_listed(most)}{' and others' if len(counts) > 3 else ''})"
    failed = int(analysis.table.failed().to_numpy().sum())
    if failed:
        text += f"; in {failed} {_plural(failed, 'cell')} no run finished"
    return text + "."


def _categories(analysis: Analysis) -> str:
    section = analysis.category_contrast
    if section is None:
        return ""
    gains, unit = section.contrasts["contrast"].dropna(), analysis.table.unit
    significant = int((section.contrasts["p_holm"] < 1 - analysis.confidence).sum())
    text = (
        f"Category {section.first} (median of {len(section.first_optimizers)}) against category "
        f"{section.second} (median of {len(section.second_optimizers)}): {section.overall:+.2f} "
        f"{unit} over {len(gains)} backbones ({section.overall_low:+.2f} to "
        f"{section.overall_high:+.2f}), ahead on {int((gains > 0).sum())}; "
        f"{significant} of the differences hold{'s' * (significant == 1)} "
        "after Holm's correction"
    )
    if section.differs_p is not None:
        text += f"; that it differs between backbones: {_p(section.differs_p)}"
    return text + "."


def _ranks(analysis: Analysis) -> str:
    test, nemenyi = analysis.friedman, analysis.nemenyi
    if test is None:
        return ""
    text = (
        f"Ranks of {test.optimizers} optimizers over {test.backbones} backbones: Friedman "
        f"{_p(test.p_value)}, agreement of the backbones (Kendall's W) {test.kendall_w:.2f}"
    )
    if test.family_p_value is not None and _known(test.family_p_value):
        text += f"; over {test.families} families of backbones {_p(test.family_p_value)}"
    if nemenyi is not None and len(nemenyi.mean_ranks):
        first = nemenyi.mean_ranks.index[0]
        close = nemenyi.mean_ranks - nemenyi.mean_ranks.iloc[0] <= nemenyi.critical_difference
        others = int(close.sum()) - 1
        text += (
            f". {label(first)} has the best mean rank, {nemenyi.mean_ranks.iloc[0]:.1f}, and "
            f"{others} {_plural(others, 'other')} {'is' if others == 1 else 'are'} within the "
            f"critical difference of {nemenyi.critical_difference:.1f}"
        )
    return text + "."


def _data(analysis: Analysis) -> str:
    table = analysis.table
    counts = table.counts()
    filled = int((counts > 0).to_numpy().sum())
    single = int((counts == 1).to_numpy().sum())
    text = (
        f"From {len(table.runs)} {_plural(len(table.runs), 'value')} of {table.score} "
        f"({table.source}): {len(table.backbones)} {_plural(len(table.backbones), 'backbone')} x "
        f"{len(table.optimizers)} {_plural(len(table.optimizers), 'optimizer')}, {filled} of "
        f"{counts.size} cells filled, {single} with one value"
    )
    if table.trials is not None:
        text += f"; {len(table.trials)} trials of learning rate and weight decay"
    return text + "."


# --- Words and numbers ---------------------------------------------------------------------------


def _known(value: Any) -> bool:
    return value is not None and not isinstance(value, str) and math.isfinite(float(value))


def _number(value: Any) -> str:
    return f"{int(value)}" if _known(value) else "an unknown number"


def _score(analysis: Analysis, value: float) -> str:
    return f"{value:.2f}" + (" %" if analysis.table.unit == "points" else f" {analysis.table.unit}")


def _size(analysis: Analysis, value: float) -> str:
    return f"{value:.2f} {analysis.table.unit}"


def _bracket(row: pandas.Series, name: str) -> str:
    """The interval of a column in brackets, after a space; "" if it is not known."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f" ({low:.2f} to {high:.2f})" if _known(low) and _known(high) else ""


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def _plural(count: float, word: str) -> str:
    return word if count == 1 else word + "s"


def _listed(names: Sequence[str], most: int = 8) -> str:
    """Return "a", "a and b", "a, b and c"; with more than `most` names, "a, b and 5 more"."""
    names = list(names)
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentence(text: str) -> str:
    """Return a text with a full stop at the end."""
    return text if text.endswith((".", "!", "?")) else text + "."
