"""Backbone by backbone: what to use, what the choice is worth, what to avoid."""

from collections.abc import Collection, Sequence
from typing import Any

import pandas

from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.score_table import regret_of
from bocb_jax.report import advice, headline, wording
from bocb_jax.report.document import Block, Picture, Section, Table, only_drawn, table_from


def build(analysis: Analysis, rows: Sequence[dict[str, Any]], drawn: Collection[str]) -> Section:
    """Return the section on backbones: a row each, and how much choice each leaves.

    Args:
      analysis: of any table.
      rows: from `advice.backbone_rows`.
      drawn: names of the pictures that were drawn.
    """
    picture = Picture(
        "freedom",
        "How much choice there is",
        "A line for each backbone: the share of the optimizers within a distance of its best.",
    )
    blocks: tuple[Block, ...] = (
        _backbones(analysis, rows),
        *only_drawn(drawn, picture),
        _column_statistics(analysis),
    )
    return Section("backbones", "Backbone by backbone", blocks)


def _backbones(analysis: Analysis, rows: Sequence[dict[str, Any]]) -> Table:
    table = analysis.table
    unit = f", {table.distance_unit}"
    equal = wording.equal_distance(table)
    frame = wording.distances(table, pandas.DataFrame(rows), "price", "median", "largest")
    if "fails" in frame:
        frame = wording.without_failed(frame)
    if headline.is_coarse(table):
        odds = regret_of(table.log_odds().goodness())
        frame["median_odds"] = odds.median().reindex(frame["backbone"]).to_numpy()
        frame["largest_odds"] = odds.max().reindex(frame["backbone"]).to_numpy()
    columns = (
        ("backbone", "backbone", "text"),
        ("use", "use", "text"),
        ("price", f"general advice costs{unit}", "interval",
         "regret of the optimizer with the lowest mean regret on backbones of other families"),
        ("general", "which is", "text"),
        ("avoid", "avoid", "text"),
        ("median", f"a middling choice{unit}", "number", "median regret"),
        ("largest", f"the worst{unit}", "number", "largest regret"),
        ("median_odds", "middling, log-odds", "number", "median regret in log-odds"),
        ("largest_odds", "worst, log-odds", "number", "largest regret in log-odds"),
        ("freedom", f"within {equal}", "percent", "freedom: share of the optimizers that close"),
        ("word", "so the choice is", "text"),
        ("camp", "camp", "text", "which optimizers lead: SGD-like, adaptive, or either"),
        ("n", "n optimizers", "int"),
    )  # fmt: skip
    caption = "Regret is the distance to the best optimizer of the backbone."
    for key, what in (("n", "optimizers"), ("general", "is the general advice everywhere")):
        if key in frame and frame[key].nunique() == 1 and frame[key].notna().all():
            caption += f" {frame[key].iloc[0]} {what}."
            frame = frame.drop(columns=key)
    if "price_low" in frame and frame["price_low"].notna().any():
        caption += " [low, high]: 90 % intervals."
    if frame["word"].notna().any():
        words = [f"{word}: {what.format(equal)}" for word, what in advice.WORDS.items()]
        caption += f" The choice is {'; '.join(words)}; undecided: none of these is shown."
    title = "What to use, what the choice is worth, what to avoid"
    return table_from(frame, title, columns, caption, stacked=True)


def _column_statistics(analysis: Analysis) -> Table:
    columns = (
        ("backbone", "backbone", "text"), ("n", "n", "int"),
        *((key, key, "number") for key in ("mean", "std", "range", "median", "mad")),
        ("best", "best", "number"), ("best_optimizer", "with", "text"),
        ("worst", "worst", "number"), ("worst_optimizer", "with", "text"),
        ("outliers", "outliers", "int"),
    )  # fmt: skip
    caption = (
        "As in the paper, mean and std leave out the worst and the best two, and range leaves out "
        f"the worst. Outliers by {analysis.outliers.rule}."
    )
    title = "The paper's statistics"
    frame = analysis.column_statistics
    return table_from(frame, title, columns, caption, index="backbone", folded=True)
