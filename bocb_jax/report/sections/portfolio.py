"""If only a few optimizers may be tried: which, and what is lost."""

from collections.abc import Collection

from bocb_jax.coupling.result import Analysis
from bocb_jax.report import wording
from bocb_jax.report.document import Block, Picture, Section, only_drawn, table_from


def build(analysis: Analysis, drawn: Collection[str]) -> Section:
    """Return the section on portfolios."""
    frame = analysis.portfolio
    if len(analysis.table.optimizers) < 3 or len(analysis.table.backbones) < 2:
        frame = frame.iloc[:0]
    unit = f", {analysis.table.distance_unit}"
    columns = (
        ("k", "tried", "int"),
        ("names", "optimizers", "text"),
        ("mean", f"lost on average{unit}", "number", "mean regret of the best of them"),
        ("worst", "at worst", "number"),
        ("worst_backbone", "on", "text"),
        ("left_out", "left out: on average", "number", "chosen without a backbone's family"),
        ("left_out_worst", "at worst", "number"),
    )
    caption = (
        "On each backbone the best of the optimizers is taken. Left out: on each family of "
        "backbones with the optimizers that are chosen from the other families."
    )
    if not frame.empty and not frame["exhaustive"].all():
        caption += " Large sets were built up one optimizer at a time, not by trying all sets."
    frame = wording.distances(analysis.table, frame, "mean", "worst", "left_out", "left_out_worst")
    frame = frame.assign(
        names=[wording.listed(wording.labels(names)) for names in frame["optimizers"]]
    )
    picture = Picture(
        "portfolio",
        "What is lost with a few optimizers",
        "Regret that remains with the best k optimizers: its mean and the worst backbone.",
    )
    blocks: list[Block] = [
        table_from(frame, "The best k optimizers to try", columns, caption, index="k")
    ]
    if len(frame):
        blocks += only_drawn(drawn, picture)
    return Section("portfolio", "If only a few may be tried", tuple(blocks))
