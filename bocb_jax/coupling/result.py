"""`Analysis`: everything that `analyze` finds about a table, section by section."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling import choice
from bocb_jax.coupling.agreement import Agreement
from bocb_jax.coupling.camps import Camps
from bocb_jax.coupling.contrasts import CategoryContrast
from bocb_jax.coupling.decomposition import Decomposition
from bocb_jax.coupling.interaction import InteractionTest
from bocb_jax.coupling.outliers import Outliers
from bocb_jax.coupling.pretraining import Pretraining
from bocb_jax.coupling.ranking import Profiles
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.coupling.significance import Friedman, Nemenyi
from bocb_jax.coupling.structure import Clusters, Structure
from bocb_jax.coupling.tuning import Budget, Hyperparameters


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything that `analyze` finds; a section that the data cannot give is None.

    The warnings say why a section is missing. Numbers are in the unit of the table's score.
    """

    table: ScoreTable
    rule: str  # that finds outliers, with its parameter
    confidence: float  # of all intervals
    resamples: int  # draws of every bootstrap and permutation
    seed: int  # of these draws
    outliers: Outliers
    # Index backbone: n, mean, std, range (as the paper prints them: mean and std without the worst
    # score and the best two, range without the worst), median, mad (times 1.4826), best, worst,
    # best_optimizer, worst_optimizer, outliers (number of cells).
    column_statistics: pandas.DataFrame
    decomposition: Decomposition | None
    # The same without the optimizers that fail (`.dropped` names them; empty if none does).
    decomposition_without_failures: Decomposition | None
    # scale, failing ("in" or "out"), optimizer, backbone, interaction, cells, dropped; see
    # `decomposition.shares`.
    shares: pandas.DataFrame
    interaction: InteractionTest | None  # None where the noise is not known
    # Index backbone: n (optimizers with a score), seeds (median per cell), one_seed_cells;
    # coupling_rms, coupling_rms_without_failures (each with _low and _high), coupling_mad,
    # worst_loss, worst_optimizer; best_optimizer, best, best_share (share of bootstrap resamples
    # with this best), tied (other optimizers that seeds cannot tell from it), mean_regret,
    # median_regret; sgd_minus_adamw (with _low and _high).
    backbones: pandas.DataFrame
    # Index optimizer: n, seeds, one_seed_cells; coupling as above, worst_loss, worst_backbone;
    # mean_score, mean_regret, mean_regret_low, mean_regret_high (over families of backbones),
    # median_regret, worst_regret; within, beyond (tuples of the backbones on which it is at most
    # `table.equal`, or more than five times that, behind the best); outliers, failed (numbers of
    # cells), category, fails (left out of `decomposition_without_failures`).
    optimizers: pandas.DataFrame
    noise: pandas.DataFrame  # between seeds, see `noise.estimate_noise`
    best: pandas.DataFrame  # every cell against the best, see `best.compare_with_best`
    free: pandas.DataFrame  # `freedom()` at `table.equal`
    stakes: pandas.DataFrame  # see `choice.stakes`
    reliability: pandas.DataFrame  # see `choice.reliability`
    price: pandas.DataFrame  # of general advice, see `choice.price`; empty for few backbones
    preference: pandas.DataFrame  # SGD-like or adaptive, see `camps.preference`
    camps: Camps
    portfolio: pandas.DataFrame  # see `portfolio.portfolio`
    beside_paper: Agreement | None  # with the paper's CIFAR-100 table, see `agreement`
    # The optimizer of pre-training as a third factor; None where runs do not start from weights of
    # several.
    pretraining: Pretraining | None
    regret: pandas.DataFrame  # best of the column minus the cell, >= 0, optimizers x backbones
    # Residuals of the median polish, optimizers x backbones; positive is better than additive.
    coupling: pandas.DataFrame
    # Each optimizer against the backbone's best over seeds; None without seeds. Columns backbone,
    # optimizer, best, difference, p_value, p_holm, n, n_best.
    against_best: pandas.DataFrame | None
    category_contrast: CategoryContrast | None
    structure: Structure | None
    clusters: Clusters | None
    # Index backbone: family, norm, stages, stem, mixer, residual, recipe, and features of your own.
    taxonomy: pandas.DataFrame
    # How well each feature predicts the preference (SGD-like minus adaptive optimizers) on families
    # left out. Index feature: levels, n, families, skill (of ranks; 1 - ratio of squared errors),
    # p_value, p_holm, sign_skill, sign_p_value, sign_p_holm (of signs), assignments, exact, helps.
    features: pandas.DataFrame | None
    # Index optimizer, best first: overall_rank, overall (weighted), performance_rank,
    # performance, hyperparameter_rank, hyperparameter_distance, flag, computation_rank, seconds, n.
    ranking: pandas.DataFrame
    friedman: Friedman | None
    nemenyi: Nemenyi | None
    # first, second, n, median_difference, statistic, p_value, p_holm, p_family, families.
    pairwise: pandas.DataFrame | None
    profiles: Profiles | None
    hyperparameters: Hyperparameters | None
    budget: Budget | None
    # backbone, optimizer, trials, within (number of trials within `table.equal` of the best),
    # share, learning_rate_low, learning_rate_high, learning_rate_factor, best_learning_rate,
    # best_weight_decay, at_edge.
    width: pandas.DataFrame | None
    # A row for each outlier or unfinished cell: backbone, optimizer, label (one of
    # `failures.LABELS`), reason, score, regret, train_loss, n.
    failures: pandas.DataFrame
    # The paper's claims: claim, figure (a sentence), n, verdict ("holds", "does not", "cannot be
    # judged here"), detail (the rule).
    claims: pandas.DataFrame
    warnings: list[str]  # sentences on what the data cannot say

    def freedom(self, equal: float | None = None) -> pandas.DataFrame:
        """Return which share of the optimizers is within a distance of the best of each backbone.

        Args:
          equal: the distance, in the unit; by default `table.equal`.

        Returns:
          See `choice.freedom`.
        """
        if equal is None:
            return self.free
        return choice.freedom(self.table, self.best, self.noise, equal, confidence=self.confidence)

    def freedom_curve(self) -> pandas.DataFrame:
        """Return the share of the optimizers within any distance, see `choice.freedom_curve`."""
        return choice.freedom_curve(self.table)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dicts and lists for JSON, with NaN and infinity as None.

        A frame becomes {"index": [...], "columns": [...], "data": [[...], ...]}, a series a dict.
        Of the table it holds mean scores, counts and source, not every run.
        """
        fields = {
            field.name: _jsonable(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "table"
        }
        table = self.table
        about = ("score", "unit", "higher_is_better", "chance", "source", "dataset", "notes")
        fields["table"] = {name: _jsonable(getattr(table, name)) for name in about} | {
            "matrix": _jsonable(table.matrix()),
            "counts": _jsonable(table.counts()),
            "failed": _jsonable(table.failed()),
            "runs": len(table.runs),
            "trials": 0 if table.trials is None else len(table.trials),
        }
        return fields


def _jsonable(value: Any) -> Any:
    """Return a value as dicts, lists and scalars that JSON can hold."""
    if isinstance(value, pandas.DataFrame):
        return {
            "index": _jsonable(value.index.tolist()),
            "columns": [str(name) for name in value.columns],
            "data": [_jsonable(list(row)) for row in value.itertuples(index=False, name=None)],
        }
    if isinstance(value, pandas.Series):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value):
        return {
            field.name: _jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value if value is None or isinstance(value, str) else str(value)
