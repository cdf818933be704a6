"""The sections of a report, one file each, in the order in which a reader meets them."""

from collections.abc import Collection, Sequence

from bocb_jax.coupling import recommend
from bocb_jax.coupling.result import Analysis
from bocb_jax.patterns.cells import WeightPatterns
from bocb_jax.report import advice, summary
from bocb_jax.report.document import Document, Section, is_empty
from bocb_jax.report.more_runs import Sweep
from bocb_jax.report.sections import (
    backbones,
    beside_paper,
    claims,
    decomposition,
    failures,
    method,
    more_runs,
    noise,
    optimizers,
    portfolio,
    predictions,
    pretraining,
    ranks,
    recommendation,
    scores,
    structure,
    tiles,
    tuning,
    weights,
)


def build_document(
    analysis: Analysis,
    drawn: Collection[str] = (),
    patterns: WeightPatterns | None = None,
    sweep: Sweep | None = None,
) -> Document:
    """Return the report of an analysis; sections without content are left out.

    Args:
      analysis: of any table.
      drawn: names of the pictures that were drawn.
      patterns: of the weights of its runs, for the section on weights.
      sweep: that made the table, for the commands that continue it.
    """
    table = analysis.table
    rows = advice.backbone_rows(analysis)
    first = [recommend.recommend(table, name) for name in table.backbones]
    recommended = tuple(found for found in first if found is not None)
    sections = [
        scores.build(analysis),
        backbones.build(analysis, rows, drawn),
        recommendation.build(recommended),
        portfolio.build(analysis, drawn),
        pretraining.build(analysis),
        more_runs.build(analysis, sweep),
        claims.build(analysis),
        beside_paper.build(analysis),
        optimizers.build(analysis, drawn),
        failures.build(analysis, drawn),
        predictions.build(analysis, drawn),
    ]
    if patterns is not None:
        sections.append(weights.build(analysis, patterns, drawn))
    behind = [
        decomposition.build(analysis, drawn),
        optimizers.build_categories(analysis),
        structure.build(analysis, drawn),
        ranks.build(analysis, drawn),
        tuning.build(analysis, drawn),
        noise.build(analysis),
        method.build(analysis),
    ]
    return Document(
        title="Backbone-optimizer coupling",
        source=(
            f"{table.source}; score: {table.score}, in {table.score_unit}. {summary.data(analysis)}"
        ),
        verdict=tuple(summary.verdict(analysis)),
        tiles=tiles.build(analysis),
        warnings=tuple(summary.warnings(analysis)),
        sections=_filled(sections),
        behind=_filled(behind),
        backbones=tuple(rows),
        recommendations=recommended,
    )


def _filled(sections: Sequence[Section]) -> tuple[Section, ...]:
    return tuple(s for s in sections if not all(is_empty(block) for block in s.blocks))
