"""Optimizer by optimizer: what each costs over the backbones, and categories against each other."""

from collections.abc import Collection

from bocb_jax.coupling.contrasts import CategoryContrast
from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.report import advice, wording
from bocb_jax.report.document import Block, Picture, Section, Table, only_drawn, table_from


def build(analysis: Analysis, drawn: Collection[str]) -> Section:
    """Return the section on optimizers."""
    text = "A row for each optimizer: a dot for each backbone and a bar at the mean."
    picture = Picture("regret", "Regret", text)
    blocks: tuple[Block, ...] = (_optimizers(analysis), *only_drawn(drawn, picture))
    return Section("optimizers", "Optimizer by optimizer", blocks)


def build_categories(analysis: Analysis) -> Section:
    """Return the section that compares the paper's categories of optimizers."""
    contrast = analysis.category_contrast
    blocks = () if contrast is None else (_contrasts(contrast, analysis.table),)
    return Section("categories", "Categories of optimizers", blocks)


def _optimizers(analysis: Analysis) -> Table:
    table = analysis.table
    equal = wording.equal_distance(table)
    frame = analysis.optimizers.sort_values("mean_regret", kind="stable")
    frame = wording.distances(
        table, frame, "mean_regret", "median_regret", "worst_regret", "coupling_rms"
    )
    frame["close"] = frame["within"].map(len) / analysis.regret.notna().sum(axis=1)
    frame["beyond"] = [wording.listed(wording.labels(names), 6) for names in frame["beyond"]]
    columns = (
        ("optimizer", "optimizer", "text"),
        ("category", "category", "text"),
        (
            "mean_regret",
            f"mean regret, {table.distance_unit}",
            "interval",
            "distance to the best of a backbone",
        ),
        ("median_regret", "median", "number"),
        ("worst_regret", "worst", "number"),
        ("close", f"within {equal}", "percent", "share of the backbones on which it is that close"),
        ("beyond", f"over {advice.far(table)} behind on", "text"),
        ("coupling_rms", "off the additive fit", "interval", "root mean square"),
        ("outliers", "outliers", "int"),
        ("failed", "failed", "int", "cells in which no run finished"),
        ("n", "n", "int", "backbones"),
        ("seeds", "seeds", "int", "per cell"),
    )
    caption = f"Outliers by {analysis.outliers.rule}. Intervals at {100 * analysis.confidence:g} %."
    return table_from(frame, "Optimizers", columns, caption, index="optimizer")


def _contrasts(contrast: CategoryContrast, table: ScoreTable) -> Table:
    columns = (
        ("backbone", "backbone", "text"),
        ("contrast", f"contrast, {table.distance_unit}", "interval"),
        ("p_value", "p", "p"), ("p_holm", "p (Holm)", "p"),
        ("n_first", f"n {contrast.first}", "int"),
        ("n_second", f"n {contrast.second}", "int"),
        ("best_first", f"best of {contrast.first}", "text"),
        ("best_second", f"best of {contrast.second}", "text"),
    )  # fmt: skip
    frame = contrast.contrasts.rename(columns={"low": "contrast_low", "high": "contrast_high"})
    frame = wording.distances(table, frame, "contrast")
    title = f"Category {contrast.first} minus category {contrast.second}"
    return table_from(frame, title, columns, contrast.description, index="backbone")
