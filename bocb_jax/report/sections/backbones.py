"""Backbone by backbone: how strongly each is coupled, in words and in numbers."""

from bocb_jax.coupling.result import Analysis
from bocb_jax.report import summary
from bocb_jax.report.document import Section, Table, Text, table_from


def build(analysis: Analysis) -> Section:
    """Return the section on backbones."""
    sentences = tuple(summary.backbone_sentence(analysis, n) for n in analysis.table.backbones)
    blocks = (Text(sentences, listed=True), _backbones(analysis), _column_statistics(analysis))
    return Section("backbones", "Backbone by backbone", blocks)


def _backbones(analysis: Analysis) -> Table:
    unit, near, (close, fair) = analysis.table.unit, summary.near(analysis), analysis.near
    columns = (
        ("backbone", "backbone", "text"),
        ("strength", "coupling", "text"),
        (
            "coupling_polished", f"coupling, {unit}", "number",
            "root mean square residual of the median polish, without the failing optimizers",
        ),
        ("coupling_rms", "off the additive fit", "interval", "root mean square"),
        ("coupling_rms_without_failures", "without failures", "number"),
        ("coupling_mad", "median size", "number", "median absolute coupling, times 1.4826"),
        ("best_optimizer", "best optimizer", "text"),
        ("best", "best", "number"),
        ("best_share", "stays best", "percent", "share of bootstrap resamples with the same best"),
        ("within_1", f"within {close:g}", "int", f"optimizers within {near} of the best"),
        ("within_2", f"within {fair:g}", "int"),
        ("n", "n optimizers", "int"),
        ("seeds", "seeds per cell", "int"),
        ("one_seed_cells", "cells with one seed", "int"),
        ("mean_regret", "mean regret", "number"),
        ("worst_loss", "worst coupling", "number"),
        ("worst_optimizer", "with", "text"),
        ("sgd_minus_adamw", "SGD - AdamW", "interval"),
    )  # fmt: skip
    caption = f"In {unit}; [low, high] are {100 * analysis.confidence:g} % intervals."
    return table_from(analysis.backbones, "Backbones", columns, caption, index="backbone")


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
