"""Every picture of a report, by name.

Each function takes a section of an `Analysis` and returns a matplotlib figure.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import pandas
from matplotlib.figure import Figure

from bocb_jax.coupling.result import Analysis
from bocb_jax.patterns.cells import WeightPatterns
from bocb_jax.report.advice import told_camps
from bocb_jax.report.plots import (
    biplot,
    choice,
    decomposition,
    heat_map,
    optimizers,
    predictions,
    ridges,
    training_curves,
    tuning,
)

# Everything that `drawers` may offer; "ridges" stands for all of `ridge_plots`, "predictions" for
# those of all backbones.
NAMES = (
    "heat_map", "freedom", "portfolio", "regret", "shares", "critical_difference", "biplot",
    "profiles", "robustness", "budget", "sensitivity", "training_curves", "ridges",
    "predictions",
)  # fmt: skip


def drawers(
    analysis: Analysis,
    curves: pandas.DataFrame | None = None,
    patterns: WeightPatterns | None = None,
    found_by: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Callable[[], Figure]]:
    """Return a function that draws it for every picture that the data allow, by name.

    Args:
      analysis: of any table.
      curves: from `bocb_jax.coupling.curves.read`, for the training curves.
      patterns: from `bocb_jax.patterns.cells.analyze_runs`, for the ridge plots.
      found_by: from `predictions.read`, pictures of what nets find.
    """
    found: dict[str, Callable[[], Figure]] = {}

    def add(name: str, draw: Callable[..., Figure], *arguments: object) -> None:
        found[name] = functools.partial(draw, *arguments)

    table, fit = analysis.table, analysis.decomposition
    if analysis.regret.size:
        add("heat_map", heat_map.draw, analysis)
        add("regret", optimizers.draw_regrets, analysis)
    if (analysis.regret.notna().sum() >= 2).any():
        add("freedom", choice.draw_freedom, analysis.freedom_curve(), table, told_camps(analysis))
    if len(analysis.portfolio) > 1 and len(table.backbones) > 1:
        add("portfolio", choice.draw_portfolio, analysis.portfolio, table)
    if fit is not None:
        add("shares", decomposition.draw, fit, analysis.decomposition_without_failures)
    if analysis.nemenyi is not None:
        add("critical_difference", optimizers.draw_critical_difference, analysis.nemenyi)
    if analysis.structure is not None:
        categories = analysis.optimizers["category"].dropna().to_dict()
        add("biplot", biplot.draw, analysis.structure, categories, analysis.clusters)
    if analysis.profiles is not None:
        add("profiles", optimizers.draw_profiles, analysis.profiles, table.unit)
    if analysis.hyperparameters is not None:
        add("robustness", tuning.draw_distances, analysis.hyperparameters)
    if analysis.budget is not None:
        add("budget", tuning.draw_budget, analysis.budget, table)
    if table.trials is not None and tuning.has_rates(table.trials):
        add("sensitivity", tuning.draw_sensitivity, table)
    if curves is not None and len(curves):
        add("training_curves", training_curves.draw, curves)
    if patterns is not None:
        for backbone, metric, name in ridge_plots(analysis, patterns):
            add(name, _draw_ridges, analysis, patterns, backbone, metric)
    for number, backbone in enumerate(table.backbones):
        if found_by is not None and backbone in found_by:
            add(f"predictions_{number}", predictions.draw, found_by[backbone])
    return found


def ridge_plots(analysis: Analysis, patterns: WeightPatterns) -> list[tuple[str, str, str]]:
    """Return backbone, metric and name of every ridge plot."""
    backbones = set(patterns.cells["backbone"])
    return [
        (backbone, metric, f"ridges_{metric}_{number}")
        for number, backbone in enumerate(analysis.table.backbones)
        for metric in ("alpha", "entropy")
        if backbone in backbones
    ]


def _draw_ridges(
    analysis: Analysis, patterns: WeightPatterns, backbone: str, metric: str
) -> Figure:
    layers = patterns.layers[patterns.layers["backbone"] == backbone]
    cells = patterns.cells[patterns.cells["backbone"] == backbone]
    return ridges.draw(
        layers,
        metric=metric,
        scores=analysis.table.matrix()[backbone].dropna().to_dict(),
        failed=set(cells[cells["failed"]]["optimizer"]),
        higher_is_better=analysis.table.higher_is_better,
    )
