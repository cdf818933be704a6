"""The sections of a report, one file each, in the order in which a reader meets them."""

from collections.abc import Collection

from bocb_jax.coupling.result import Analysis
from bocb_jax.patterns.cells import WeightPatterns
from bocb_jax.report import summary
from bocb_jax.report.document import Document, format_value, is_empty
from bocb_jax.report.sections import (
    backbones,
    decomposition,
    failures,
    method,
    optimizers,
    ranks,
    recommendation,
    scores,
    structure,
    tuning,
    weights,
)
from bocb_jax.report.style import label


def build_document(
    analysis: Analysis, drawn: Collection[str] = (), patterns: WeightPatterns | None = None
) -> Document:
    """Return the report of an analysis; sections without content are left out.

    Args:
      analysis: of any table.
      drawn: names of the pictures that were drawn.
      patterns: of the weights of its runs, for the section on weights.
    """
    table = analysis.table
    sections = [
        scores.build(analysis),
        recommendation.build(analysis),
        backbones.build(analysis),
        decomposition.build(analysis, drawn),
        optimizers.build(analysis, drawn),
        structure.build(analysis, drawn),
        ranks.build(analysis, drawn),
        tuning.build(analysis, drawn),
        failures.build(analysis, drawn),
    ]
    if patterns is not None:
        sections.append(weights.build(analysis, patterns, drawn))
    sections.append(method.build(analysis))
    return Document(
        title="Backbone-optimizer coupling",
        source=f"{table.source}; score: {table.score}, in {table.unit}",
        verdict=tuple(summary.verdict(analysis)),
        tiles=_tiles(analysis),
        warnings=tuple(summary.warnings(analysis)),
        sections=tuple(s for s in sections if not all(is_empty(block) for block in s.blocks)),
    )


def _tiles(analysis: Analysis) -> tuple[tuple[str, str], ...]:
    """The key numbers at the top of the page."""
    tiles, fit = [], analysis.decomposition
    if fit is not None:
        share = fit.terms.at["interaction", "share"]
        note = f"of the variance is coupling, n = {fit.cells} cells"
        tiles.append((format_value(share, "percent"), note))
        without = analysis.decomposition_without_failures
        if without is not None and without.dropped:
            share = without.terms.at["interaction", "share"]
            names = ", ".join(label(name, 12) for name in without.dropped[:3])
            more = f" and {len(without.dropped) - 3} more" if len(without.dropped) > 3 else ""
            note = f"without {names}{more}, n = {without.cells} cells"
            tiles.append((format_value(share, "percent"), note))
    strengths = analysis.backbones["strength"]
    if strengths.isin(["weak", "moderate", "strong"]).any():
        note = f"of {len(strengths)} backbones tightly coupled"
        tiles.append((str((strengths == "strong").sum()), note))
    regret = analysis.optimizers["mean_regret"].dropna()
    if len(regret) > 1:
        name = regret.idxmin()
        note = (
            f"costs least: {regret.min():.2f} {analysis.table.unit} on average, "
            f"n = {int(analysis.optimizers.at[name, 'n'])} backbones"
        )
        tiles.append((label(name, 24), note))
    outliers = analysis.outliers
    note = f"of the cells are outliers by {outliers.rule}"
    tiles.append((f"{outliers.count} of {outliers.cells}", note))
    return tuple(tiles)
