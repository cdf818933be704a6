"""Optimizer by optimizer: what each costs over the backbones, and categories against each other."""

from collections.abc import Collection

from bocb_jax.coupling.contrasts import CategoryContrast
from bocb_jax.coupling.result import Analysis
from bocb_jax.report import summary
from bocb_jax.report.document import Block, Picture, Section, Table, only_drawn, table_from


def build(analysis: Analysis, drawn: Collection[str]) -> Section:
    """Return the section on optimizers."""
    text = "A row for each optimizer: a dot for each backbone and a bar at the mean."
    picture = Picture("regret", "Regret", text)
    blocks: list[Block] = [*only_drawn(drawn, picture), _optimizers(analysis)]
    if analysis.category_contrast is not None:
        blocks.append(_contrasts(analysis.category_contrast))
    return Section("optimizers", "Optimizer by optimizer", tuple(blocks))


def _optimizers(analysis: Analysis) -> Table:
    unit, near, (close, fair) = analysis.table.unit, summary.near(analysis), analysis.near
    columns = (
        ("optimizer", "optimizer", "text"),
        ("category", "category", "text"),
        ("mean_regret", f"mean regret, {unit}", "interval", "distance to the best of a backbone"),
        ("median_regret", "median", "number"),
        ("worst_regret", "worst", "number"),
        ("share_within_1", f"within {close:g}", "percent", f"share of backbones within {near}"),
        ("share_within_2", f"within {fair:g}", "percent"),
        ("coupling_rms", "coupling", "interval"),
        ("strength", "strength", "text"),
        ("worst_loss", "worst coupling", "number"),
        ("worst_backbone", "on", "text"),
        ("outliers", "outliers", "int"),
        ("failed", "failed", "int", "cells in which no run finished"),
        ("mean_score", "mean score", "number"),
        ("n", "n backbones", "int"),
        ("seeds", "seeds per cell", "int"),
        ("one_seed_cells", "cells with one seed", "int"),
    )
    caption = f"Outliers by {analysis.outliers.rule}. Intervals at {100 * analysis.confidence:g} %."
    return table_from(analysis.optimizers, "Optimizers", columns, caption, index="optimizer")


def _contrasts(contrast: CategoryContrast) -> Table:
    columns = (
        ("backbone", "backbone", "text"), ("contrast", "contrast", "interval"),
        ("p_value", "p", "p"), ("p_holm", "p (Holm)", "p"),
        ("n_first", f"n {contrast.first}", "int"),
        ("n_second", f"n {contrast.second}", "int"),
        ("best_first", f"best of {contrast.first}", "text"),
        ("best_second", f"best of {contrast.second}", "text"),
    )  # fmt: skip
    frame = contrast.contrasts.copy()
    frame[["contrast_low", "contrast_high"]] = frame[["low", "high"]]
    title = f"Category {contrast.first} minus category {contrast.second}"
    return table_from(frame, title, columns, contrast.description, index="backbone")
