"""The table of scores as a heat map, and the rule behind its marks."""

from bocb_jax.coupling.result import Analysis
from bocb_jax.report import wording
from bocb_jax.report.document import HeatMap, Section, Text


def build(analysis: Analysis) -> Section:
    """Return the section with the heat map."""
    outliers = analysis.outliers
    rule = (
        f"Marks by the rule {outliers.rule}: {wording.sentence(outliers.description)} "
        f"Outliers: {outliers.count} of {outliers.cells} cells."
    )
    return Section("table", "The table", (HeatMap(), Text((rule,))))
