"""Cells that failed or lag behind, and the training curves."""

from collections.abc import Collection

from bocb_jax.coupling.result import Analysis
from bocb_jax.report import wording
from bocb_jax.report.document import Block, Picture, Section, only_drawn, table_from


def build(analysis: Analysis, drawn: Collection[str]) -> Section:
    """Return the section on failures."""
    table = analysis.table
    columns = (
        ("backbone", "backbone", "text"), ("optimizer", "optimizer", "text"),
        ("label", "what happened", "text"), ("reason", "as seen in", "text"),
        ("score", "score", "number"), ("regret", f"behind, {table.distance_unit}", "number"),
        ("train_loss", "training loss", "number"), ("n", "n", "int"),
    )  # fmt: skip
    caption = f"Outliers by {analysis.outliers.rule}, and cells in which no run finished."
    frame = analysis.failures
    if frame is not None and "regret" in frame:
        frame = frame.sort_values("regret", ascending=False, kind="stable")
        frame = wording.distances(table, frame, "regret")
    text = "Score against epochs, a panel for each backbone."
    curves = Picture("training_curves", "Training curves", text)
    failures = table_from(frame, "Failures", columns, caption, folded=len(frame) > 12)
    blocks: tuple[Block, ...] = (failures, *only_drawn(drawn, curves))
    return Section("failures", "Cells that failed or lag behind", blocks)
