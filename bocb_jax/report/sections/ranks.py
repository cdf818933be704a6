"""Ranks of the optimizers, and which differences between them are significant."""

from collections.abc import Collection

from bocb_jax.coupling.result import Analysis
from bocb_jax.report.document import Block, Picture, Section, only_drawn, table_from


def build(analysis: Analysis, drawn: Collection[str]) -> Section:
    """Return the section on ranks."""
    ranking = (
        ("overall_rank", "rank", "int"), ("optimizer", "optimizer", "text"),
        ("overall", "weighted", "number"), ("performance_rank", "performance rank", "int"),
        ("performance", "performance", "number"),
        ("hyperparameter_rank", "hyper-parameter rank", "int"),
        ("hyperparameter_distance", "distance", "number"), ("flag", "flag", "int"),
        ("computation_rank", "computation rank", "int"), ("seconds", "seconds", "number"),
    )  # fmt: skip
    pairs = (
        ("first", "first", "text"), ("second", "second", "text"), ("n", "n", "int"),
        ("median_difference", "median difference", "number"), ("p_value", "p", "p"),
        ("p_holm", "p (Holm)", "p"), ("p_family", "p over families", "p"),
        ("families", "families", "int"),
    )  # fmt: skip
    pictures = only_drawn(
        drawn,
        Picture(
            "critical_difference",
            "Mean ranks",
            "Mean rank of each optimizer, and which of them differ.",
        ),
        Picture("profiles", "Performance profiles", "Share of the backbones near the best."),
    )
    ranked = analysis.ranking
    tests = analysis.pairwise
    if tests is not None:
        tests = tests.sort_values("p_value", kind="stable")
    caption = "Wilcoxon's signed-rank test over backbones, with Holm's correction."
    blocks: tuple[Block, ...] = (
        *pictures,
        table_from(ranked, "The paper's weighted ranking", ranking, index="optimizer"),
        table_from(tests, "Pairs of optimizers", pairs, caption, folded=True),
    )
    return Section("ranks", "Ranks and significance", blocks)
