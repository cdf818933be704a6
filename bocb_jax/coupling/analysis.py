"""The whole analysis of a table of scores, section by section.

>>> from bocb_jax.coupling import analyze
>>> from bocb_jax.coupling.scores import from_published
>>> analysis = analyze(from_published("cifar100"), resamples=100)
>>> analysis.decomposition.terms["share"].round(2).to_dict()
{'optimizer': 0.22, 'backbone': 0.39, 'interaction': 0.4}
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling import (
    caveats,
    contrasts,
    decomposition,
    failures,
    ranking,
    significance,
    strength,
    structure,
    tuning,
)
from bocb_jax.coupling.contrasts import Families
from bocb_jax.coupling.decomposition import Decomposition, Tukey
from bocb_jax.coupling.features import features_of
from bocb_jax.coupling.features import predict as predict_preference
from bocb_jax.coupling.outliers import Marks, column_statistics, mark
from bocb_jax.coupling.ranking import Profiles
from bocb_jax.coupling.scores import ScoreTable
from bocb_jax.coupling.significance import Friedman, Nemenyi
from bocb_jax.coupling.structure import Clusters, Structure
from bocb_jax.coupling.tuning import Budget, Hyperparameters
from bocb_jax.errors import UserError

__all__ = [
    "Analysis",
    "Budget",
    "Clusters",
    "Decomposition",
    "Families",
    "Friedman",
    "Hyperparameters",
    "Marks",
    "Nemenyi",
    "Profiles",
    "ScoreTable",
    "Structure",
    "Tukey",
    "analyze",
]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything `analyze` found. A section that the data cannot give is None; warnings say why."""

    table: ScoreTable
    rule: str
    confidence: float
    resamples: int
    seed: int
    marks: Marks
    # index backbone: n, mean, std, range (the paper's: without the worst and the best two; range
    # without the worst), median, mad (times 1.4826), best, worst, best_optimizer, worst_optimizer,
    # outliers
    column_statistics: pandas.DataFrame
    decomposition: Decomposition | None
    # The same without the optimizers that fail (`.dropped` names them; empty if none does).
    decomposition_without_failures: Decomposition | None
    # index backbone: n (optimizers with a score), seeds (median per cell), one_seed_cells;
    # coupling_rms, coupling_rms_without_failures (each with _low and _high),
    # coupling_polished (root mean square in the polished table without failures), coupling_mad,
    # worst_loss, worst_optimizer; best_optimizer, best, best_share (share of bootstrap resamples
    # with this best), tied (others that seeds cannot tell from it), within_1, within_2 (number
    # within `near[0]` and `near[1]` of the best), mean_regret, median_regret; sgd_minus_adamw
    # (with _low and _high); strength ("weak", "moderate", "strong", "unknown")
    backbones: pandas.DataFrame
    # index optimizer: n, seeds, one_seed_cells; coupling as above, worst_loss, worst_backbone;
    # mean_score, mean_regret, mean_regret_low, mean_regret_high (over families of backbones),
    # median_regret, worst_regret, share_within_1, share_within_2; outliers, failed (cells),
    # category, fails (left out of `decomposition_without_failures`), strength
    optimizers: pandas.DataFrame
    near: tuple[float, float]  # what within_1 and within_2 count, in the unit
    regret: pandas.DataFrame  # best of the column minus the cell, >= 0, optimizers x backbones
    # residuals of the median polish, optimizers x backbones; positive is better than additive
    coupling: pandas.DataFrame
    # backbone, optimizer, best, difference, p_value, p_holm, n, n_best: each optimizer against the
    # backbone's best over seeds; None without seeds
    against_best: pandas.DataFrame | None
    families: Families | None
    structure: Structure | None
    clusters: Clusters | None
    taxonomy: pandas.DataFrame  # index backbone: family, norm, stages, stem, mixer, ..., recipe
    # index feature: levels, n, families, in_sample_r2, error (leave one family out, root mean
    # square), error_without (the same without the feature), skill (1 - ratio of squares), p_value,
    # p_holm, helps. What is predicted is the contrast of `families`.
    features: pandas.DataFrame | None
    # index optimizer, best first: overall_rank, overall (weighted), performance_rank,
    # performance, hyperparameter_rank, hyperparameter_distance, flag, computation_rank, seconds
    ranking: pandas.DataFrame
    friedman: Friedman | None
    nemenyi: Nemenyi | None
    # first, second, n, median_difference, statistic, p_value, p_holm, p_family, families
    pairwise: pandas.DataFrame | None
    profiles: Profiles | None
    hyperparameters: Hyperparameters | None
    budget: Budget | None
    # backbone, optimizer, trials, within (number of trials within 1 unit of the best), share,
    # learning_rate_low, learning_rate_high, learning_rate_factor, best_learning_rate,
    # best_weight_decay, at_edge
    width: pandas.DataFrame | None
    # one row per marked or unfinished cell: backbone, optimizer, label ("diverged", "never left the
    # start", "under-fitted", "over-fitted", "did not finish", "unclear"), reason, score, regret,
    # train_loss, n
    failures: pandas.DataFrame
    strength_rule: str  # the cut-offs behind `strength`, in words
    warnings: list[str]  # plain sentences on what the data cannot say

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able dicts and lists; NaN and infinity become None.

        A frame is {"index": [...], "columns": [...], "data": [[...], ...]}, a series a dict. Of the
        table there are mean scores, counts and source, not every run.
        """
        fields = {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "table"
        }
        table = self.table
        about = ("score", "unit", "higher_is_better", "chance", "source", "dataset", "notes")
        fields["table"] = {name: _plain(getattr(table, name)) for name in about} | {
            "matrix": _plain(table.matrix()),
            "counts": _plain(table.counts()),
            "failed": _plain(table.failed()),
            "runs": len(table.runs),
            "trials": 0 if table.trials is None else len(table.trials),
        }
        return fields


def _plain(value: Any) -> Any:
    if isinstance(value, pandas.DataFrame):
        return {
            "index": _plain(value.index.tolist()),
            "columns": [str(name) for name in value.columns],
            "data": [_plain(list(row)) for row in value.itertuples(index=False, name=None)],
        }
    if isinstance(value, pandas.Series):
        return {str(name): _plain(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value if value is None or isinstance(value, str) else str(value)


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
    """Analyses a table of scores.

    Args:
      table: from `from_published`, `from_csv` or `from_results`.
      rule: what marks a cell: "paper_marks", "paper_eq1" or "regret", or with a parameter in the
        unit of the score, "regret(2)".
      confidence: of all intervals.
      resamples: draws of every bootstrap and permutation.
      seed: of these draws; the same seed gives the same figures.
      categories: optimizer -> category, for optimizers that the paper does not have.
      features: one row a backbone (index), one column a feature, beside those known of the paper's.

    Raises:
      UserError: there is no score, the rule is unknown, the confidence is not between 0 and 1, or
        there are no resamples.
    """
    if not 0 < confidence < 1:
        raise UserError(f"The confidence is between 0 and 1, such as 0.95, and not {confidence}.")
    if resamples < 1:
        raise UserError(f"The number of resamples is at least 1, and not {resamples}.")
    if not table.runs["score"].notna().any():
        raise UserError(f"There is no score in the table from {table.source}.")
    marks = mark(table, rule)
    goodness = strength.goodness_of(table)
    regret = strength.regret_of(goodness)
    coupling = decomposition.median_polish(goodness)
    draws = {"confidence": confidence, "resamples": resamples, "seed": seed}

    taxonomy = features_of(table.backbones, features)
    families = taxonomy["family"]
    grouped = families if families.duplicated().any() else None
    kinds = contrasts.category_of(table.optimizers, categories)

    failing = strength.failing(regret, table)
    full = decomposition.decompose(table, **draws)
    without = decomposition.decompose(table, dropped=failing, **draws) if failing else full
    apart = significance.against_best(table)
    backbones, optimizers = strength.strengths(table, failing, coupling, confidence)
    backbones = strength.backbones(table, backbones, regret, apart, **draws)
    optimizers = strength.optimizers(table, optimizers, regret, marks, kinds, families, **draws)
    noise = without.noise_std if without is not None else None
    backbones["strength"], strength_rule = strength.words(
        backbones["coupling_polished"], table.unit, noise
    )
    optimizers["fails"] = optimizers.index.isin(failing)
    optimizers["strength"] = strength.words(optimizers["coupling_polished"], table.unit, noise)[0]

    contrast = contrasts.contrast(table, kinds, families, **draws)
    tuned = tuning.settings_of(table)
    hyperparameters = tuning.distances(tuned, trials=table.trials)
    sections = Analysis(
        table=table,
        rule=marks.rule,
        marks=marks,
        column_statistics=column_statistics(table, marks),
        decomposition=full,
        decomposition_without_failures=without,
        backbones=backbones,
        optimizers=optimizers,
        near=table.within,
        regret=regret,
        coupling=coupling,
        against_best=apart,
        families=contrast,
        structure=_structure(table, without, resamples, seed),
        clusters=structure.cluster(goodness, resamples=resamples, seed=seed),
        taxonomy=taxonomy,
        features=_features(contrast, taxonomy, resamples, seed),
        ranking=ranking.rank(table, marks, hyperparameters),
        friedman=significance.friedman(goodness, grouped),
        nemenyi=significance.nemenyi(goodness, confidence=confidence),
        pairwise=significance.pairwise(goodness, grouped),
        profiles=ranking.profile(table),
        hyperparameters=hyperparameters,
        budget=tuning.budget(table, confidence=confidence, seed=seed),
        width=tuning.width(table),
        failures=failures.label(table, marks, regret),
        strength_rule=strength_rule,
        warnings=[],
        **draws,
    )
    return dataclasses.replace(sections, warnings=caveats.warn(sections))


def _structure(table, without: Decomposition | None, resamples, seed) -> Structure | None:
    """Axes of the interaction without the optimizers that fail, who would be axis 1."""
    if without is None:
        return None
    kept = table.select(optimizers=without.interaction.index)
    sign = 1 if table.higher_is_better else -1
    return structure.decompose(
        sign * without.interaction,
        decomposition.cells_of_table(kept),
        resamples=resamples,
        seed=seed,
    )


def _features(contrast: Families | None, taxonomy, resamples, seed) -> pandas.DataFrame | None:
    if contrast is None:
        return None
    target = contrast.contrasts["contrast"]
    known = taxonomy.reindex(target.index)
    return predict_preference(target, known, resamples=resamples, seed=seed)
