"""The first sentences of a report: camps, prices, what to use and to avoid, what is worth trying.

Nothing is said that its interval does not carry. Where the noise between seeds is not known, a
sentence says so; it comes first unless what the figures show is plain.
"""

import dataclasses
from collections.abc import Sequence

import pandas

from bocb_jax.coupling.costs import LEAST_BACKBONES, costs_of, diverged, far_from
from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.rounding import p_text
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.report import advice, wording
from bocb_jax.report.style import label
from bocb_jax.report.wording import counted, gap, is_known, is_nothing, listed, with_unit

_MOST_PRICES = 3
_MOST_NAMES = 9  # of backbones in a sentence
_MOST_USED = 3
_MOST_AVOIDED = 2
_HIGH = 97.0  # percent; above it a point is a large part of the errors


def headline(analysis: Analysis) -> list[str]:
    """Return what a reader should take home, the most important first."""
    told = analysis.regret.notna().sum() >= 2
    names = [str(name) for name in told.index[told]]
    if not names:
        return ["No backbone has two optimizers with a score, so there is nothing to compare."]
    words = _words(analysis)
    if len(names) == 1:
        shown = [advice.advise(analysis, names[0]).sentence]
        shown.append("With one backbone there is no coupling to speak of: that takes another.")
        plain = True
    elif len(names) < LEAST_BACKBONES:
        shown, plain = _crossings(analysis, names)
        shown += [
            _portfolio(analysis),
            f"With {len(names)} backbones, what general advice costs cannot be said; that takes "
            f"{LEAST_BACKBONES}.",
        ]
    else:
        camps, prices = _camps(analysis), _prices(analysis)
        plain = bool(camps) or advice.noise_is_known(analysis)
        if prices and not plain:
            prices = f"In these figures, {prices[0].lower()}{prices[1:]}"
        shown = [camps, prices]
        if not (analysis.free["word"].reindex(names) == "free").all():
            shown += [*_by_camp(analysis, names), _portfolio(analysis)]
        else:
            words, shown = [], [*words, *shown]
    noise = _noise(analysis)
    if not plain:
        found = [noise, *shown, *words]
    elif not _is_shown(analysis):
        found = [noise, *words, *shown]
    else:
        found = [*shown, *words, noise]
    found = [text for text in found if text]
    coarse = _coarse(analysis)
    return [*found[:1], coarse, *found[1:]] if coarse else found


# -- camps -----------------------------------------------------------------------------------------


def _camps(analysis: Analysis) -> str:
    """Return which kind of optimizers leads where; "" if the table cannot tell."""
    told = advice.told_camps(analysis)
    if not told:
        return ""
    groups = {camp: names for camp, names in analysis.camps.members.items() if names}
    either = groups.pop("either", ())
    if not groups:
        return "On no backbone are SGD-like or adaptive optimizers shown to lead."
    if len(groups) == 1 and not either:
        (camp,) = groups
        where = f"all {len(told)} backbones" if len(told) > 1 else _names(list(told))
        return f"{_kind(camp)} lead on {where}{_test(analysis)}."
    # The smaller group by name, the other one as the rest.
    order = sorted(groups, key=lambda camp: len(groups[camp]))
    parts = [f"{_kind(order[0])} lead on {_names(groups[order[0]])}"]
    for camp in order[1:]:
        others = groups[camp]
        where = _names(others) if either or len(others) <= 3 else f"the other {len(others)}"
        parts.append(f"{_kind(camp, start=False)} on {where}")
    if either:
        where = _names(either) if len(either) <= 3 else f"the other {len(either)}"
        parts.append(f"neither kind is shown to lead on {where}")
    return f"{'; '.join(parts)}{_test(analysis)}."


def _kind(camp: str, *, start: bool = True) -> str:
    name = "SGD-like" if camp == "SGD-like" else "Adaptive" if start else "adaptive"
    return f"{name} optimizers" if start else f"{name} ones"


def _test(analysis: Analysis) -> str:
    """Return the test of whether classic CNNs differ from other backbones, where it tells."""
    camps = analysis.camps
    if camps.p_value is None or camps.p_value >= 1 - analysis.confidence:
        return ""
    classic, others = camps.families
    return (
        f" (classic CNNs, {classic} families, against {others} other families: "
        f"{p_text(camps.p_value)})"
    )


def _names(names: Sequence[str]) -> str:
    return listed(wording.labels(names), _MOST_NAMES)


# -- prices and crossings --------------------------------------------------------------------------


def _prices(analysis: Analysis) -> str:
    """Return where general advice costs most."""
    table, price = analysis.table, analysis.price.dropna(subset="price")
    if price.empty:
        return ""
    fails = price["fails"].astype(bool)
    # What fails has the cost of the worst, which was not measured, and no interval.
    failing, measured = price[fails], price[~fails]
    known = bool(measured["price_high"].notna().all())
    order = measured.sort_values("price", ascending=False, kind="stable")
    dear = order["price"] > table.equal + 1e-9
    if known:
        dear &= ~order["price_low"].map(lambda low: is_nothing(table, low))
    shown = order[dear].head(_MOST_PRICES)
    rest = order.drop(index=shown.index)
    advised = list(dict.fromkeys(price["general"]))
    who = f"{label(advised[0])}, the best" if len(advised) == 1 else "the best"
    text = f"General advice ({who} optimizer on other families of backbones) costs "
    if len(rest) == len(price):
        return f"{text}{_at_most(table, rest, known, unit=True)} on any of {len(rest)} backbones."
    parts: list[str] = []
    for name, row in shown.iterrows():
        whose = f" with {label(row['general'])}" if len(advised) > 1 else ""
        cost = gap(table, row["price"]) if parts else with_unit(table, row["price"])
        parts.append(f"{cost} on {label(name)}{whose}{advice.between(table, row)}")
    for general, rows in failing.groupby("general", sort=False):
        whose = f" with {label(general)}" if len(advised) > 1 else ""
        parts.append(f"everything on {_names(rows.index)}{whose}, where it does not finish")
    text += listed(parts)
    return (
        f"{text}, and {_at_most(table, rest, known, unit=shown.empty)} on the other {len(rest)}."
        if len(rest)
        else f"{text}."
    )


def _at_most(table: ScoreTable, price: pandas.DataFrame, known: bool, *, unit: bool = False) -> str:
    """Return the largest of some prices; where known, of the upper ends of their intervals."""
    size = with_unit if unit else gap
    top = price["price"].max()
    high = price["price_high"].max() if known else top
    if is_nothing(table, high):
        return "nothing"
    text = f"at most {size(table, high)}"
    if gap(table, high) == gap(table, top):
        return text
    return f"{text} ({'nothing' if is_nothing(table, top) else gap(table, top)} in these figures)"


def _crossings(analysis: Analysis, names: Sequence[str]) -> tuple[list[str], bool]:
    """Return which optimizers are good on one backbone and behind on another, for few backbones.

    Returns:
      A sentence each, the largest gap first, and whether that gap is so large that it is plain.
    """
    table, regret = analysis.table, analysis.regret[list(names)]
    best = {name: regret[name].idxmin() for name in names}
    everywhere = (regret <= 1e-9).all(axis=1)
    if everywhere.any():
        return [f"{label(everywhere.idxmax())} is best on {_names(names)}."], False
    known = advice.noise_is_known(analysis)
    found: dict[tuple[str, str], list[_Crossing]] = {}
    for name in names:
        crossing = _crossing(analysis, name, names, known)
        if crossing is not None:
            found.setdefault((crossing.optimizer, crossing.bad), []).append(crossing)
    crossings = sorted(found.values(), key=lambda same: -same[0].behind_bad)
    if not crossings:
        how = "is shown to be" if known else "is"
        lead = wording.listed(dict.fromkeys(wording.labels(best.values())), last="or")
        return [
            f"No optimizer that is best somewhere ({lead}) {how} more than "
            f"{wording.equal_distance(table)} behind on another backbone."
        ], known
    plain = known or crossings[0][0].behind_bad > far_from(table.equal) + 1e-9
    start = "" if plain else "In these figures, "
    return [f"{start}{_crossing_sentence(table, same)}." for same in crossings], plain


@dataclasses.dataclass(frozen=True)
class _Crossing:
    """An optimizer that is good on one backbone and behind on another."""

    optimizer: str
    good: str
    behind_good: float
    bad: str
    behind_bad: float
    fails: bool  # on `bad`


def _crossing(analysis: Analysis, good: str, names: Sequence[str], known: bool) -> _Crossing | None:
    """Return the optimizer among the good ones of a backbone that is furthest behind elsewhere."""
    table, regret = analysis.table, analysis.regret[list(names)]
    costs, failed = costs_of(table)[list(names)], diverged(table)
    cells = analysis.best.set_index(["backbone", "optimizer"])
    worst: _Crossing | None = None
    for optimizer, behind in regret[good].dropna().sort_values(kind="stable").items():
        if behind > 2 * table.equal + 1e-9:
            break
        for bad in names:
            cost, fails = costs.at[optimizer, bad], bool(failed.at[optimizer, bad])
            if bad == good or not is_known(cost) or (worst and cost <= worst.behind_bad):
                continue
            is_far = cost > behind + max(table.equal, behind) + 1e-9
            if fails or (
                is_far and (not known or cells.at[(bad, optimizer), "verdict"] == "beyond")
            ):
                worst = _Crossing(str(optimizer), good, float(behind), bad, float(cost), fails)
    return worst


def _crossing_sentence(table: ScoreTable, same: Sequence[_Crossing]) -> str:
    """Return one sentence on one optimizer and the backbone on which it is behind."""
    first = same[0]
    best = [one.good for one in same if is_nothing(table, one.behind_good)]
    parts = [f"best on {_names(best)}"] if best else []
    for one in same:
        if one.good not in best:
            unit = gap if parts else with_unit
            parts.append(f"{unit(table, one.behind_good)} behind on {label(one.good)}")
    text = f"{label(first.optimizer)} is {listed(parts)}"
    if first.fails:
        return f"{text}, and no run of it finishes on {label(first.bad)}"
    unit = with_unit if best and len(parts) == 1 else gap
    return f"{text}, and {unit(table, first.behind_bad)} behind on {label(first.bad)}"


# -- what to use and to avoid ----------------------------------------------------------------------


def _by_camp(analysis: Analysis, names: Sequence[str]) -> list[str]:
    """Return what to use, what the choice is worth and what to avoid, for each camp."""
    told = advice.told_camps(analysis)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(told.get(name, "either") if told else "", []).append(name)
    if len(groups) == 1:
        return [f"Over all {len(names)} backbones: {_advice(analysis, names)}."]
    where = {
        "SGD-like": "Where SGD-like optimizers lead",
        "adaptive": "Where adaptive optimizers lead",
        "either": "On the others",
    }
    return [
        f"{where[camp]}: {_advice(analysis, groups[camp])}." for camp in where if camp in groups
    ]


def _advice(analysis: Analysis, names: Sequence[str]) -> str:
    table = analysis.table
    costs = costs_of(table)[list(names)]
    mean = costs.mean(axis=1)[2 * costs.notna().sum(axis=1) >= len(names)]
    mean = mean.dropna().sort_values(kind="stable")
    if mean.empty:
        return "no optimizer was tried on half of them"
    used = mean[mean <= mean.iloc[0] + table.equal + 1e-9].head(_MOST_USED)
    first = True
    parts = []
    for name, lost in used.items():
        cost = "nothing" if is_nothing(table, lost) else gap(table, lost, fine=True)
        lost = " lost" if len(names) == 1 else " lost on average"
        parts.append(f"{label(name)} ({cost}{lost * first})")
        first = False
    median = analysis.stakes["median"].reindex(names).median()
    text = f"use {listed(parts, last='or')}"
    if is_known(median) and not is_nothing(table, median):
        text += f"; a middling choice loses {gap(table, median)}"
    avoid = _avoid(analysis, names)
    return f"{text}; avoid {listed(avoid)}" if avoid else text


def _avoid(analysis: Analysis, names: Sequence[str]) -> list[str]:
    """Return the optimizers that are most often far behind, or without a finished run."""
    table = analysis.table
    counts: dict[str, list[float]] = {}  # optimizer -> cells far behind, cells failed, worst regret
    for name in names:
        cells = analysis.best[analysis.best["backbone"] == name].set_index("optimizer")
        for optimizer in advice.shown_beyond(analysis.stakes.at[name, "beyond"], cells):
            entry = counts.setdefault(str(optimizer), [0, 0, 0.0])
            entry[0] += 1
            entry[2] = max(entry[2], cells.at[optimizer, "regret"])
        for optimizer in analysis.stakes.at[name, "failed"]:
            counts.setdefault(str(optimizer), [0, 0, 0.0])[1] += 1
    order = sorted(counts, key=lambda name: (-sum(counts[name][:2]), -counts[name][2]))
    shown = []
    for optimizer in order[:_MOST_AVOIDED]:
        far, failed, worst = counts[optimizer]
        parts = []
        if failed:
            parts.append(f"no run finished on {failed:.0f} of {len(names)}")
        if far:
            parts.append(
                f"over {advice.far(table)} behind on {far:.0f} of {len(names)}, "
                f"up to {gap(table, worst)}"
                if len(names) > 1
                else f"{gap(table, worst)} behind"
            )
        shown.append(f"{label(optimizer)} ({', '.join(parts)})")
    return shown


def _portfolio(analysis: Analysis) -> str:
    """Return which one or two optimizers to try, and what is lost with the best of them."""
    table, portfolio = analysis.table, analysis.portfolio
    if portfolio.empty or len(analysis.table.optimizers) < 2:
        return ""
    most = 2 if len(portfolio) > 1 and len(table.backbones) >= LEAST_BACKBONES else 1
    shown = portfolio.loc[1:most]
    enough = shown[shown["worst"] <= table.equal + 1e-9]
    if len(enough):
        shown = shown.loc[: enough.index[0]]
    parts: list[str] = []
    for k, row in shown.iterrows():
        names = listed(wording.labels(row["optimizers"]))
        start = "If only one optimizer may be tried" if k == 1 else "If two"
        ends = _lost(table, row["mean"], row["worst"], brief=bool(parts))
        if not is_nothing(table, row["worst"]):
            ends += f" ({label(row['worst_backbone'])})"
        parts.append(f"{start}, {names}: {ends}")
    last = shown.iloc[-1]
    if is_known(last["left_out"]) and len(table.backbones) >= LEAST_BACKBONES:
        left = _lost(table, last["left_out"], last["left_out_worst"], brief=True)
        parts[-1] += f"; chosen without a backbone's own family, {left}"
    return f"{'. '.join(parts)}."


def _lost(table: ScoreTable, mean: float, worst: float, *, brief: bool) -> str:
    if is_nothing(table, worst):
        return "nothing is lost"
    if brief:
        return f"{gap(table, mean, fine=True)} and {gap(table, worst, fine=True)}"
    average = "nothing" if is_nothing(table, mean) else with_unit(table, mean, fine=True)
    return f"{average} lost on average, {gap(table, worst, fine=True)} at worst"


# -- how sure that is ------------------------------------------------------------------------------


def _words(analysis: Analysis) -> list[str]:
    """Return on which backbones the choice is free, bound, mixed or undecided."""
    found, free = [], analysis.free
    distance = wording.equal_distance(analysis.table)
    for word, meaning in advice.WORDS.items():
        names = list(free.index[free["word"] == word])
        if not names:
            continue
        whole: list[str] = []
        apart: dict[tuple[str, ...], list[str]] = {}  # exceptions -> backbones
        for name in names:
            but = tuple(_exceptions(analysis, name)) if word == "free" else ()
            (apart.setdefault(but, []) if but else whole).append(name)
        parts = []
        if whole:
            is_all = len(whole) == len(free) > 1
            parts.append(f"{word} on {f'all {len(whole)} backbones' if is_all else _names(whole)}")
        parts += [f"{word}, but for {_names(but)}, on {_names(on)}" for but, on in apart.items()]
        found.append(f"The choice is {'; '.join(parts)}: {meaning.format(distance)}.")
    undecided = list(free.index[free["word"] == "undecided"])
    if undecided:
        found.append(f"Whether the choice is free or bound is undecided on {_names(undecided)}.")
    return found


def _exceptions(analysis: Analysis, name: str) -> list[str]:
    """Return the optimizers of a backbone that are far behind or do not finish."""
    cells = analysis.best[analysis.best["backbone"] == name].set_index("optimizer")
    stakes = analysis.stakes.loc[name]
    return [*stakes["failed"], *advice.shown_beyond(stakes["beyond"], cells)]


def _noise(analysis: Analysis) -> str:
    """Return whether the figures can be told from noise."""
    if not advice.noise_is_known(analysis):
        figures = "run" if analysis.table.trials is not None else "figure"
        if analysis.table.one_seed:
            return (
                f"There is one {figures} per cell and its noise is not known, so which of these "
                "differences other seeds would confirm cannot be said: give its standard deviation "
                "with --noise, or run more seeds."
            )
        return (
            "The noise between seeds is not known on every backbone, so which of these differences "
            "other seeds would confirm cannot be said."
        )
    if analysis.interaction is None:
        return ""
    p_value = analysis.interaction.p_value
    if _is_shown(analysis):
        return (
            "That optimizers compare differently on different backbones is more than noise "
            f"({p_text(p_value)})."
        )
    return (
        "No coupling is shown: that optimizers compare differently on different backbones may be "
        f"noise ({p_text(p_value)})."
    )


def _is_shown(analysis: Analysis) -> bool:
    """Return whether the interaction is more than noise; True where that is not tested."""
    test = analysis.interaction
    return test is None or test.p_value < 1 - analysis.confidence


def is_coarse(table: ScoreTable) -> bool:
    """Return whether points are too coarse: most of the best accuracies are near 100 percent."""
    best = table.matrix().max().dropna()
    return table.is_accuracy and (best > _HIGH).mean() > 0.5


def _coarse(analysis: Analysis) -> str:
    if not is_coarse(analysis.table):
        return ""
    best = analysis.table.matrix().max().dropna()
    return (
        f"On {int((best > _HIGH).sum())} of {counted(len(best), 'backbone')} the best is above "
        f"{_HIGH:g} %, where a point is a large part of all errors: log-odds stand beside points, "
        "and --score log-odds analyzes them."
    )
