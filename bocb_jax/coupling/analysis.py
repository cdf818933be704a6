"""The whole analysis of a table of scores.

>>> from bocb_jax.coupling import analyze
>>> from bocb_jax.coupling.scores import from_published
>>> analysis = analyze(from_published("cifar100"), resamples=100)
>>> analysis.decomposition.terms["share"].round(2).to_dict()
{'optimizer': 0.22, 'backbone': 0.39, 'interaction': 0.4}
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pandas

from bocb_jax.coupling import (
    agreement,
    best,
    camps,
    caveats,
    choice,
    claims,
    contrasts,
    decomposition,
    failures,
    margins,
    noise,
    portfolio,
    ranking,
    significance,
    structure,
    tuning,
)
from bocb_jax.coupling.cells import cells_of_table
from bocb_jax.coupling.costs import costs_of
from bocb_jax.coupling.decomposition import Decomposition
from bocb_jax.coupling.features import features_of, predict
from bocb_jax.coupling.interaction import interaction_test
from bocb_jax.coupling.outliers import Outliers, column_statistics, find_outliers
from bocb_jax.coupling.pretraining import analyze_pretraining
from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.score_table import ScoreTable, regret_of
from bocb_jax.coupling.structure import Structure
from bocb_jax.errors import UserError

__all__ = ["Analysis", "analyze"]


@dataclasses.dataclass(frozen=True)
class _Draws:
    """Confidence of all intervals, and the draws of every bootstrap and permutation."""

    confidence: float
    resamples: int
    seed: int

    def options(self) -> dict[str, Any]:
        """As keyword arguments."""
        return dataclasses.asdict(self)


def analyze(
    table: ScoreTable,
    *,
    rule: str = "paper_marks",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    categories: Mapping[str, str] | None = None,
    features: pandas.DataFrame | None = None,
) -> Analysis:
    """Analyze a table of scores.

    Args:
      table: from `from_published`, `from_csv` or `from_results`.
      rule: what makes a cell an outlier: "paper_marks", "paper_eq1" or "regret", or with a
        parameter in the unit of the score, "regret(2)".
      confidence: of all intervals.
      resamples: draws of every bootstrap and permutation.
      seed: of these draws; the same seed gives the same figures.
      categories: optimizer -> category, for optimizers that the paper does not have.
      features: of backbones (index), a column each, in addition to those known of the paper's.

    Raises:
      UserError: there is no score, the rule is unknown, the confidence is not between 0 and 1, or
        there are no resamples.
    """
    if not 0 < confidence < 1:
        raise UserError(
            f"The confidence is {confidence}; it must be between 0 and 1, such as 0.95."
        )
    if resamples < 1:
        raise UserError(f"The number of resamples is {resamples}; it must be at least 1.")
    if not table.runs["score"].notna().any():
        raise UserError(f"There is no score in the table from {table.source}.")
    draws = _Draws(confidence, resamples, seed)
    outliers = find_outliers(table, rule)
    regret = regret_of(table.goodness())
    kinds = contrasts.category_of(table.optimizers, categories)
    taxonomy = features_of(table.backbones, features)
    found = Analysis(
        table=table,
        rule=outliers.rule,
        outliers=outliers,
        column_statistics=column_statistics(table, outliers),
        regret=regret,
        taxonomy=taxonomy,
        pretraining=analyze_pretraining(table, **draws.options()),
        failures=failures.label(table, outliers, regret),
        profiles=ranking.profile(table),
        claims=pandas.DataFrame(),
        warnings=[],
        **_choices(table, kinds, taxonomy, draws),
        **_effects(table, outliers, regret, kinds, taxonomy["family"], draws),
        **_preferences(table, kinds, taxonomy, draws),
        **_rank_tests(table, taxonomy["family"], draws),
        **_tuning(table, outliers, draws),
        **draws.options(),
    )
    return dataclasses.replace(found, claims=claims.judge(found), warnings=caveats.warn(found))


def _choices(
    table: ScoreTable, categories: pandas.Series, taxonomy: pandas.DataFrame, draws: _Draws
) -> dict[str, Any]:
    """Return the sections on what the choice costs, on camps, and on what predicts them."""
    families = taxonomy["family"]
    estimated = noise.estimate_noise(table)
    compared = best.compare_with_best(table, estimated, confidence=draws.confidence)
    preferred = camps.preference(table, categories, estimated)
    return {
        "noise": estimated,
        "best": compared,
        "free": choice.freedom(table, compared, estimated, confidence=draws.confidence),
        "stakes": choice.stakes(table),
        "reliability": choice.reliability(table, confidence=draws.confidence),
        "price": choice.price(
            table, families, estimated, resamples=draws.resamples, seed=draws.seed
        ),
        "preference": preferred,
        "features": predict(
            preferred["points"], taxonomy, resamples=draws.resamples, seed=draws.seed
        ),
        "camps": camps.find_camps(preferred, families, camps.classic_of(table.backbones)),
        "portfolio": portfolio.portfolio(costs_of(table), families),
        "beside_paper": agreement.beside_paper(table),
    }


def _effects(
    table: ScoreTable,
    outliers: Outliers,
    regret: pandas.DataFrame,
    categories: pandas.Series,
    families: pandas.Series,
    draws: _Draws,
) -> dict[str, Any]:
    """Return the sections on variance: shares, and the coupling of backbones and optimizers."""
    coupling = decomposition.median_polish(table.goodness())
    failing = margins.failing(regret, table)
    full = decomposition.decompose(table, **draws.options())
    without = full
    if failing:
        without = decomposition.decompose(table, dropped=failing, **draws.options())
    against_best = significance.against_best(table)
    backbones, optimizers = margins.coupling_by_axis(table, failing, coupling, draws.confidence)
    backbones = margins.describe_backbones(
        table, backbones, regret, against_best, **draws.options()
    )
    optimizers = margins.describe_optimizers(
        table, optimizers, regret, outliers, categories, families, **draws.options()
    )
    optimizers["fails"] = optimizers.index.isin(failing)
    return {
        "decomposition": full,
        "decomposition_without_failures": without,
        "shares": decomposition.shares(table, failing),
        "interaction": interaction_test(table, resamples=draws.resamples, seed=draws.seed),
        "backbones": backbones,
        "optimizers": optimizers,
        "coupling": coupling,
        "against_best": against_best,
        "structure": _structure(table, without, draws),
    }


def _structure(table: ScoreTable, without: Decomposition | None, draws: _Draws) -> Structure | None:
    """Return the axes of the interaction without the optimizers that fail.

    With them the first axis would only tell who fails.
    """
    if without is None:
        return None
    kept = table.select(optimizers=without.interaction.index)
    return structure.decompose(
        table.sign * without.interaction,
        cells_of_table(kept),
        resamples=draws.resamples,
        seed=draws.seed,
    )


def _preferences(
    table: ScoreTable, categories: pandas.Series, taxonomy: pandas.DataFrame, draws: _Draws
) -> dict[str, Any]:
    """Return the sections on which backbones prefer the same."""
    return {
        "category_contrast": contrasts.contrast(
            table, categories, taxonomy["family"], **draws.options()
        ),
        "clusters": structure.cluster(table.goodness(), resamples=draws.resamples, seed=draws.seed),
    }


def _rank_tests(table: ScoreTable, families: pandas.Series, draws: _Draws) -> dict[str, Any]:
    """Return the sections that compare optimizers over backbones by rank."""
    goodness = table.goodness()
    blocks = families if families.duplicated().any() else None
    return {
        "friedman": significance.friedman(goodness, blocks),
        "nemenyi": significance.nemenyi(goodness, confidence=draws.confidence),
        "pairwise": significance.pairwise(goodness, blocks),
    }


def _tuning(table: ScoreTable, outliers: Outliers, draws: _Draws) -> dict[str, Any]:
    """Return the sections on tuning, and the paper's ranking, which takes it into account."""
    tuned = tuning.tuned_values_of(table)
    hyperparameters = tuning.distances(tuned, trials=table.trials)
    return {
        "hyperparameters": hyperparameters,
        "budget": tuning.budget(table, confidence=draws.confidence, seed=draws.seed),
        "width": tuning.width(table),
        "ranking": ranking.rank(table, outliers, hyperparameters),
    }
