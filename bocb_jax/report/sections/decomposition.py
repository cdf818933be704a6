"""How much of the variance of the scores is backbone, optimizer, and coupling."""

from collections.abc import Collection

from bocb_jax.coupling.result import Analysis
from bocb_jax.report import summary
from bocb_jax.report.document import Block, Picture, Section, Text, only_drawn, table_from
from bocb_jax.report.style import label


def build(analysis: Analysis, drawn: Collection[str]) -> Section:
    """Return the section on the decomposition of the variance."""
    text = "Stacked bars of the shares in the tables below."
    picture = Picture("shares", "Shares of variance", text)
    blocks: list[Block] = [Text(tuple(summary.statistics(analysis)), listed=True)]
    blocks += only_drawn(drawn, picture)
    fits = [(analysis.decomposition, "All optimizers")]
    without = analysis.decomposition_without_failures
    if without is not None and without.dropped:
        fits.append((without, f"Without {', '.join(label(name) for name in without.dropped)}"))
    columns = (
        ("term", "term", "text"), ("share", "share", "percent"),
        ("omega_squared", "omega squared", "interval"),
        ("sum_of_squares", "sum of squares", "number"),
        ("degrees_of_freedom", "degrees of freedom", "int"), ("f", "F", "number"),
        ("p_value", "p", "p"),
    )  # fmt: skip
    for fit, title in fits:
        if fit is not None:
            caption = (
                f"n = {fit.runs} runs in {fit.cells} cells, {fit.replicated_cells} with two or "
                f"more runs; {fit.missing_cells} cells are missing."
            )
            blocks.append(table_from(fit.terms, title, columns, caption, index="term"))
    return Section("shares", "Backbone, optimizer, coupling", tuple(blocks))
