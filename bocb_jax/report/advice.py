"""What each backbone asks for: what to use, what the choice is worth, what to avoid."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas

from bocb_jax.coupling.costs import far_from
from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.report import wording
from bocb_jax.report.style import label
from bocb_jax.report.wording import gap, is_known, is_nothing

_MOST_USED = 3  # optimizers that are named as ones to use
_MOST_AVOIDED = 3
# How much choice a backbone leaves, as `coupling.choice.freedom` judges it, with what is equal.
WORDS = {
    "free": "at least two thirds of the optimizers are shown to be within {} of the best",
    "bound": "at least two thirds of the optimizers are shown to be more than {} behind the best",
    "mixed": "more than a third of the optimizers are shown to be within {} of the best, and more "
    "than a third beyond it",
}
_ENDED = {
    "diverged": "diverged",
    "out_of_memory": "ran out of memory",
    "crashed": "crashed",
    "timed_out": "timed out",
    "not_reached": "did not reach the target",
}


@dataclasses.dataclass(frozen=True)
class Advice:
    """What is said about one backbone, in parts; an empty part has nothing to say."""

    backbone: str
    use: str  # "AdaBelief, NovoGrad or SGDP"
    within: str  # how far those are from the best, "within 1.3"
    worth: str  # "Adan, the best elsewhere, costs 3.5 here"
    avoid: str  # "AdaGrad (7.2 behind) and RMSProp (6.1)"
    remarks: tuple[str, ...]  # on runs that did not finish

    @property
    def sentence(self) -> str:
        """All parts in a sentence: "ResNet-50: AdaBelief (...); Adan ...; avoid AdaGrad (...)."."""
        use = f"{self.use} ({self.within})" if self.within else self.use
        avoid = f"avoid {self.avoid}" if self.avoid else ""
        parts = [part for part in (use, self.worth, avoid, *self.remarks) if part]
        return f"{label(self.backbone)}: {'; '.join(parts)}."


def advise(analysis: Analysis, backbone: str) -> Advice:
    """Return what to use on a backbone, what that is worth and what to avoid."""
    table = analysis.table
    regret = analysis.regret[backbone].dropna().sort_values(kind="stable")
    cells = analysis.best[analysis.best["backbone"] == backbone].set_index("optimizer")
    avoid, remarks = _avoid(analysis, backbone, cells), _remarks(table, backbone)
    if len(regret) < 2:
        use = (
            "no optimizer has a score" if regret.empty else _only(table, backbone, regret.index[0])
        )
        return Advice(backbone, use, "", "", avoid, remarks)
    best = table.matrix().at[regret.index[0], backbone]
    if is_nothing(table, regret.iloc[-1]):
        whose = f"all {len(regret)} optimizers{' with a score' if avoid else ''}"
        same = f"{whose} score the same ({wording.score(table, best)})"
        return Advice(backbone, same, "", "", avoid, remarks)
    use, within = _use(table, regret, cells)
    worth = _price(analysis, backbone) or f"a middling choice loses {_loss(table, regret.median())}"
    return Advice(backbone, use, within, worth, avoid, remarks)


def _only(table: ScoreTable, backbone: str, name: str) -> str:
    shown = wording.score(table, table.matrix().at[name, backbone])
    return f"only {label(name)} has a score ({shown})"


def _use(table: ScoreTable, regret: pandas.Series, cells: pandas.DataFrame) -> tuple[str, str]:
    """Return the optimizers to use, the best first, and how close they are.

    Those are the optimizers within what counts as equal; where they are fewer than three, the next
    ones join up to twice that distance.
    """
    close = regret[regret <= table.equal + 1e-9]
    named = regret[regret <= 2 * table.equal + 1e-9].index[:_MOST_USED]
    used = close.index if len(close) > _MOST_USED else named
    shown = wording.labels(used[:_MOST_USED])
    if len(used) > len(shown):
        text = f"{', '.join(shown)} or {wording.counted(len(used) - len(shown), 'other')}"
    else:
        text = wording.listed(shown, last="or")
    if len(used) == 1:
        second = regret.index[1]
        return text, f"the next, {label(second)}, is {gap(table, regret.iloc[1])} behind"
    farthest = regret[used[-1]]
    within = "equal" if is_nothing(table, farthest) else f"within {gap(table, farthest)}"
    high = wording.largest(cells["high"].reindex(used)) if cells["high"].notna().all() else None
    if is_known(high) and not is_nothing(table, high):
        within += f", with other seeds within {gap(table, high)}"
    return text, within


def _loss(table: ScoreTable, value: float) -> str:
    return "nothing" if is_nothing(table, value) else gap(table, value)


def _price(analysis: Analysis, backbone: str) -> str:
    """Return what the optimizer costs that is best elsewhere; "" if that is not known."""
    if backbone not in analysis.price.index:
        return ""
    table, row = analysis.table, analysis.price.loc[backbone]
    name = label(row["general"])
    if row["fails"]:
        return f"{name}, the best elsewhere, does not finish here"
    if not is_known(row["price"]):
        return f"{name}, the best elsewhere, has no score here"
    if is_nothing(table, row["price"]):
        return f"{name} is the best elsewhere too{between(table, row, 'costs here')}"
    return f"{name}, the best elsewhere, costs {gap(table, row['price'])} here{between(table, row)}"


def between(table: ScoreTable, row: pandas.Series, what: str = "") -> str:
    """Return the interval of a price in brackets after a space; "" if there is none."""
    low, high = row["price_low"], row["price_high"]
    if not (is_known(low) and is_known(high)) or is_nothing(table, high):
        return ""
    start = f"{what}: " if what else ""
    ends = gap(table, high)
    if is_nothing(table, low):
        return f" ({start}at most {ends})"
    return f" ({start}{gap(table, low)} to {ends})"


def _avoid(analysis: Analysis, backbone: str, cells: pandas.DataFrame) -> str:
    """Return the optimizers that are far behind or failed, the worst first; "" without any."""
    table, stakes = analysis.table, analysis.stakes.loc[backbone]
    runs = table.runs[table.runs["backbone"] == backbone]
    missed = runs["status"].eq("not_reached").groupby(runs["optimizer"]).all()
    failed = [
        f"{label(name)} (no run {'reached the target' if missed[name] else 'finished'})"
        for name in stakes["failed"]
    ]
    far = shown_beyond(stakes["beyond"], cells)
    names = [
        f"{label(name)} ({gap(table, cells.at[name, 'regret'])}{' behind' * (i == 0)})"
        for i, name in enumerate(far)
    ]
    return wording.listed([*failed, *names], _MOST_AVOIDED + 1)


def shown_beyond(names: Sequence[str], cells: pandas.DataFrame) -> list[str]:
    """Return which optimizers are behind for more than the noise of their seeds, where known."""
    known = cells["high"].notna().all()
    return [name for name in names if not known or cells.at[name, "verdict"] == "beyond"]


def _remarks(table: ScoreTable, backbone: str) -> tuple[str, ...]:
    """Return which optimizers did not finish every run, unless that is said elsewhere."""
    runs = table.runs[table.runs["backbone"] == backbone]
    said = []
    for name, group in runs.groupby("optimizer", sort=False):
        ended = group["status"][group["status"] != "finished"]
        alike = len(set(ended)) == 1 and len(ended) == len(group)
        if ended.empty or (alike and ended.iloc[0] in ("diverged", "not_reached")):
            continue  # none, or it is among those to avoid
        how = wording.listed(
            f"{count} of {len(group)} runs {_ENDED.get(str(status), 'did not finish')}"
            for status, count in ended.value_counts(sort=False).items()
        )
        said.append(f"{label(name)}: {how}")
    return (wording.listed(said, 4),) if said else ()


def backbone_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """Return a row for each backbone: its advice, whole and in parts, and the figures behind it."""
    table, camps = analysis.table, told_camps(analysis)
    rows = []
    for name in table.backbones:
        advice, free, stakes = (
            advise(analysis, name),
            analysis.free.loc[name],
            analysis.stakes.loc[name],
        )
        row = {
            "sentence": advice.sentence,
            "backbone": name,
            "use": f"{advice.use} ({advice.within})" if advice.within else advice.use,
            "avoid": "; ".join(part for part in (advice.avoid, *advice.remarks) if part),
            "camp": camps.get(name),
            "freedom": free["freedom"],
            "word": free["word"],
            "median": stakes["median"],
            "largest": stakes["largest"],
            "worst": stakes["worst"],
            "n": int(free["n"]) if is_known(free["n"]) else 0,
        }
        if name in analysis.price.index:
            keys = ("general", "price", "price_low", "price_high")
            row |= {key: analysis.price.at[name, key] for key in keys}
            row["fails"] = bool(analysis.price.at[name, "fails"])
        rows.append(row)
    return rows


def told_camps(analysis: Analysis) -> dict[str, str]:
    """Return the camp of every backbone where the table can tell; empty where it cannot.

    Without a known noise, the camps must at least agree with what kind of network the backbones
    are; else they are what noise makes of any table.
    """
    camps, p_value = analysis.camps, analysis.camps.p_value
    if not noise_is_known(analysis) and (p_value is None or p_value >= 1 - analysis.confidence):
        return {}
    return {name: camp for camp, names in camps.members.items() for name in names}


def noise_is_known(analysis: Analysis) -> bool:
    """Return whether the noise between seeds is known on every backbone with a score."""
    scored = analysis.table.matrix().notna().any()
    return bool(analysis.noise["sd"].reindex(scored.index[scored]).notna().all())


def far(table: ScoreTable) -> str:
    """Return the distance beyond which an optimizer is one to avoid, in words: "5", "10 %"."""
    return gap(table, far_from(table.equal)).removesuffix(".0")
