"""The table of scores as a heat map, and the rule behind its marks."""

from bocb_jax.coupling.analysis import Analysis
from bocb_jax.report import summary
from bocb_jax.report.document import HeatMap, Section, Text


def build(analysis: Analysis) -> Section:
    """Return the section with the heat map."""
    marks = analysis.marks
    rule = (
        f"Marks by the rule {marks.rule}: {summary.sentence(marks.description)} "
        f"Outliers: {marks.outliers} of {marks.cells} cells."
    )
    return Section("table", "The table", (HeatMap(), Text((rule,))))
