"""What `bocb probe` found about a backbone or an optimizer of the user's, in sentences."""

import math

import pandas

from bocb_jax.coupling.choice import MOST_SEEDS
from bocb_jax.coupling.costs import costs_of, diverged
from bocb_jax.coupling.paired import compare_overall, compare_paired, judge_paired
from bocb_jax.coupling.placement import place
from bocb_jax.coupling.portfolio import portfolio
from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.report import summary
from bocb_jax.report.style import label
from bocb_jax.report.wording import (
    counted,
    equal_distance,
    gap,
    is_known,
    labels,
    listed,
    number,
    with_unit,
)


def model_lines(analysis: Analysis, model: str) -> list[str]:
    """Return what the runs say about a backbone, a sentence each.

    Args:
      analysis: of the backbone and those beside it.
      model: the backbone.
    """
    table = analysis.table
    names = [model, *(name for name in table.backbones if name != model)]
    lines = [summary.backbone_sentence(analysis, name) for name in names]
    row = analysis.free.loc[model]
    if row["word"] == "undecided":
        lines.append(
            f"Whether the choice is free or bound on {label(model)} is undecided"
            f"{_seeds(row['seeds'], 'every cell')}"
        )
    regret, counts = analysis.regret[model], table.counts()[model]
    words = [
        f"{label(opt)} {gap(table, behind)} (n = {counts[opt]})"
        for opt, behind in regret.dropna().items()
    ]
    if words:
        lines.append(f"{label(model)}, behind its best in {table.unit}: {', '.join(words)}.")
    alike = place(regret).head(3)
    if len(alike):
        near = [f"{name} ({row.distance:.2f})" for name, row in alike.iterrows()]
        lines.append(
            f"Published backbones with the most similar regrets: {', '.join(near)}; in brackets "
            "the root mean square difference in points. Their scores are from CIFAR-100 after 200 "
            "epochs, unlike these: take it for a hint."
        )
    return [*lines, *(f"- {line}" for line in summary.warnings(analysis))]


def optimizer_lines(analysis: Analysis, opt: str) -> list[str]:
    """Return where an optimizer helps, where it fails and what it costs, a sentence each.

    Args:
      analysis: of the optimizer and those beside it.
      opt: the optimizer.
    """
    table = analysis.table
    found = judge_paired(table, opt, compare_paired(table, opt))
    others = [name for name in table.optimizers if name != opt]
    lines = [
        f"{label(opt)} against {listed(labels(others))}, with the same number of "
        "learning rates each and the same seeds:"
    ]
    for verdict in ("helps", "as good", "fails", "undecided"):
        for backbone, row in found[found["verdict"] == verdict].iterrows():
            lines.append(f"- {_verdict(table, str(backbone), row)}")
    return [
        *lines,
        *_overall(table, opt),
        *_general(analysis, opt),
        *_edges(analysis, opt),
        *(f"- {line}" for line in summary.warnings(analysis)),
    ]


def _verdict(table: ScoreTable, backbone: str, row: pandas.Series) -> str:
    verdict = row["verdict"]
    if not isinstance(row["rival"], str):
        if verdict == "fails":
            return f"fails on {label(backbone)}: no run finished."
        return f"not compared on {label(backbone)}: it has no score there."
    where = "ahead of" if row["difference"] >= 0 else "behind"
    size = with_unit(table, abs(row["difference"]))
    text = f"{verdict} on {label(backbone)}: {size} {where} {label(row['rival'])}, the best of the "
    text += "others"
    if is_known(row["low"]) and is_known(row["high"]):
        ends = [row["low"], row["high"]] if where == "ahead of" else [-row["high"], -row["low"]]
        text += f" ({' to '.join(number(table, end) for end in ends)})"
    if verdict != "undecided":
        return f"{text}."
    if not is_known(row["low"]):
        return f"{text}; the noise between seeds is not known, so nothing is decided."
    return text + _seeds(row["seeds"], "each pair")


def _overall(table: ScoreTable, opt: str) -> list[str]:
    """Say how an optimizer compares with each of the others over all backbones together.

    Nothing where it diverged on one of them: means over the rest would flatter it.
    """
    if opt in table.optimizers and diverged(table).loc[opt].any():
        return []
    words = {
        "equal": f"equal (within {equal_distance(table)})", "ahead": "ahead", "behind": "behind",
        "undecided": "undecided",
    }  # fmt: skip
    parts = [
        f"{label(other)}: {words[row['verdict']]}, {number(table, row['difference'])}"
        + (
            f" ({number(table, row['low'])} to {number(table, row['high'])})"
            if is_known(row["low"])
            else ""
        )
        for other, row in compare_overall(table, opt).iterrows()
    ]
    if not parts:
        return []
    together = "; ".join(parts)
    whole = "Over these backbones, weighted by how sure each is"
    return [f"{whole}, {label(opt)} minus each of the others: {together}."]


def _seeds(needed: float, cells: str) -> str:
    """Return how many seeds would decide what is undecided although the noise is known."""
    if math.isnan(needed):
        return f"; {MOST_SEEDS} seeds would not decide it either."
    return f"; {needed:.0f} seeds of {cells} would decide it, if noise and means stay."


def _general(analysis: Analysis, opt: str) -> list[str]:
    """Say what an optimizer costs on all backbones, and what it adds to those beside it."""
    costs = costs_of(analysis.table)
    whole = costs.dropna()
    if opt not in whole.index or len(whole) < 3:
        return []
    table, own = analysis.table, whole.loc[opt]
    means = whole.mean(axis=1).sort_values(kind="stable")
    others = listed(f"{label(name)} {gap(table, cost)}" for name, cost in means.drop(opt).items())
    lines = [
        f"As general advice for these {counted(whole.shape[1], 'backbone')} {label(opt)} costs "
        f"{with_unit(table, means[opt])} on average, at worst {gap(table, own.max())} "
        f"({label(own.idxmax())}); the others: {others}."
    ]
    families = analysis.taxonomy["family"]
    with_it = portfolio(whole, families, largest=2).iloc[-1]
    text = (
        f"Of two to try, {_losing(with_it)} least, {with_unit(table, with_it['mean'])} on average"
    )
    if opt in with_it["optimizers"]:
        without = portfolio(whole.drop(index=opt), families, largest=2).iloc[-1]
        text += f"; without {label(opt)}, {_losing(without)} {gap(table, without['mean'])}"
    return [*lines, text + "."]


def _losing(row: pandas.Series) -> str:
    names = labels(row["optimizers"])
    return f"{listed(names)} lose" if len(names) > 1 else f"{names[0]} alone loses"


def _edges(analysis: Analysis, opt: str) -> list[str]:
    """Say where the best learning rate was the lowest or highest that was tried."""
    if analysis.width is None or "at_edge" not in analysis.width:
        return []
    own = analysis.width[(analysis.width["optimizer"] == opt) & analysis.width["at_edge"]]
    if own.empty:
        return []
    return [
        f"On {listed(list(own['backbone']))} its best learning rate lies at the edge of the three "
        "that were tried: another default of learning_rate in its function may score better."
    ]
