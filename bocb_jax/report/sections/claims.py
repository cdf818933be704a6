"""The paper's claims against the table at hand."""

from bocb_jax.coupling.result import Analysis
from bocb_jax.report.document import Section, table_from


def build(analysis: Analysis) -> Section:
    """Return the section on the paper's claims."""
    columns = (
        ("claim", "the paper says", "text"),
        ("verdict", "here", "text"),
        ("figure", "figure", "text"),
        ("n", "n", "int"),
        ("detail", "judged by", "text"),
    )
    caption = "Li et al., 2024, arXiv 2410.06373."
    frame = analysis.claims
    table = table_from(frame, "The paper's claims in this table", columns, caption, stacked=True)
    return Section("claims", "The paper's claims", (table,))
