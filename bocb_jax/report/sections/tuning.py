"""What tuning of the learning rate and weight decay changes."""

from collections.abc import Collection

import pandas

from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.coupling.tuning import Budget, Hyperparameters
from bocb_jax.report import wording
from bocb_jax.report.document import (
    Block,
    Picture,
    Section,
    Table,
    Text,
    format_value,
    only_drawn,
    table_from,
)

_PICTURES = (
    Picture(
        "budget",
        "Score and coupling against tuning budget",
        "Expected best of a given number of trials.",
    ),
    Picture(
        "sensitivity",
        "Sensitivity to the learning rate",
        "Distance to the best score of each pair of backbone and optimizer.",
    ),
    Picture(
        "robustness", "Tuned values against the usual ones", "Box plots of the ordinal distances."
    ),
)


def build(analysis: Analysis, drawn: Collection[str]) -> Section:
    """Return the section on learning rates and weight decays."""
    blocks: list[Block] = [*only_drawn(drawn, *_PICTURES)]
    if analysis.budget is not None:
        blocks += _budget(analysis.budget, analysis.table)
    if analysis.hyperparameters is not None:
        blocks += _distances(analysis.hyperparameters)
    blocks.append(_good_regions(analysis))
    return Section("tuning", "Learning rate and weight decay", tuple(blocks))


def _budget(budget: Budget, table: ScoreTable) -> list[Block]:
    unit = table.distance_unit
    coupling = (
        ("trials", "trials", "int"), ("interaction_std", f"coupling, {unit}", "number"),
        ("interaction_share", "share", "percent"),
        ("mean_regret", f"mean regret, {unit}", "number"), ("cells", "n cells", "int"),
    )  # fmt: skip
    defaults = (
        ("backbone", "backbone", "text"), ("optimizer", "optimizer", "text"),
        ("learning_rate", "learning rate", "rate"), ("weight_decay", "weight decay", "rate"),
        ("score", "score", "number"), ("best", "best", "number"), ("gap", f"gap, {unit}", "number"),
    )  # fmt: skip
    caption = "Scores with the values that won most often on the other backbones."
    told = wording.distances(table, budget.coupling, "interaction_std", "mean_regret")
    without = budget.defaults
    if without is not None:
        without = wording.distances(table, without, "gap")
        without = without.assign(**table.as_measured(without[["score", "best"]]))
    blocks: list[Block] = [
        table_from(told, "Coupling and tuning budget", coupling, index="trials"),
        table_from(without, "Without tuning", defaults, caption, folded=True),
    ]
    if budget.optimism is not None:
        found = {"x": budget.optimism, "x_low": budget.optimism_low, "x_high": budget.optimism_high}
        (row,) = wording.distances(table, pandas.DataFrame([found]), "x").to_dict("records")
        size = format_value(row["x"], "interval", row, "x")
        line = (
            f"The winner of a search scored {size} {unit} better in the search than new seeds did "
            f"on the same split, n = {budget.optimism_cells} cells."
        )
        blocks.append(Text((line,)))
    return blocks


def _distances(tuned: Hyperparameters) -> list[Table]:
    quartiles = (
        ("n", "n", "int"), ("median", "median", "number"), ("mean", "mean", "number"),
        ("q1", "1st quartile", "number"), ("q3", "3rd quartile", "number"),
        ("max", "largest", "number"),
    )  # fmt: skip
    frames = {"backbone": tuned.by_backbone, "optimizer": tuned.by_optimizer}
    return [
        table_from(
            frame,
            f"Steps from the usual values, by {kind}",
            ((kind, kind, "text"), *quartiles),
            tuned.description,
            index=kind,
            folded=True,
        )
        for kind, frame in frames.items()
    ]


def _good_regions(analysis: Analysis) -> Table:
    columns = (
        ("backbone", "backbone", "text"), ("optimizer", "optimizer", "text"),
        ("trials", "n trials", "int"),
        ("within", f"within {wording.equal_distance(analysis.table)}", "int"),
        ("share", "share", "percent"),
        ("learning_rate_low", "from", "rate"), ("learning_rate_high", "to", "rate"),
        ("learning_rate_factor", "factor", "number"), ("best_learning_rate", "best rate", "rate"),
        ("best_weight_decay", "best decay", "rate"), ("at_edge", "at the edge", "text"),
    )  # fmt: skip
    caption = (
        f"Learning rates within {wording.equal_distance(analysis.table)} of the best of the pair. "
        "At the edge: the best lies at the lowest or highest value that was tried, so search "
        "further."
    )
    frame: pandas.DataFrame | None = analysis.width
    if frame is not None and "at_edge" in frame:
        frame = frame.assign(at_edge=["yes" if edge else "" for edge in frame["at_edge"]])
    return table_from(frame, "Width of the good region", columns, caption, folded=True)
