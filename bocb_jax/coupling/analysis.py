"""The whole analysis of a table of scores, section by section.

>>> from bocb_jax.coupling import analyze
>>> from bocb_jax.coupling.table import from_published
>>> analysis = analyze(from_published("cifar100"), resamples=100)
>>> analysis.decomposition.terms["share"].round(2).to_dict()
{'optimizer': 0.22, 'backbone': 0.39, 'interaction': 0.4}
"""

import dataclasses
from typing import Any

import pandas

from bocb_jax.coupling.table import ScoreTable


@dataclasses.dataclass(frozen=True)
class Marks:
    """Which cells are marked, by a named rule."""

    rule: str  # "paper_marks", "paper_eq1" or "regret", with its parameter: "paper_marks(2)"
    description: str  # the rule as a formula, in words
    # optimizers x backbones: "best", "top4", "inlier", "outlier"; "missing" without a score
    marks: pandas.DataFrame
    cuts: pandas.Series  # by backbone: a score worse than this is an outlier
    outliers: int  # how many cells are outliers
    cells: int  # of how many with a score


@dataclasses.dataclass(frozen=True)
class Tukey:
    """Tukey's test for one degree of freedom of interaction, for tables of one seed a cell."""

    f: float
    degrees_of_freedom: tuple[int, int]
    p_value: float
    coefficient: float  # of the product of backbone and optimizer effects
    share: float  # of the interaction's sum of squares, that this one product explains


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """score = mean + optimizer + backbone + interaction + noise, by least squares."""

    # index: "optimizer", "backbone", "interaction" and, with seeds, "noise". Columns:
    # sum_of_squares, degrees_of_freedom, mean_square, f, p_value; share (of the cell means, the
    # three systematic terms together 1), share_low, share_high (bootstrap over seeds);
    # omega_squared (noise taken out; partial, interval by the noncentral F), omega_squared_low,
    # omega_squared_high.
    # NaN where one seed a cell cannot give it.
    terms: pandas.DataFrame
    mean: float
    optimizer_effects: pandas.Series  # deviations from the mean, in the unit
    backbone_effects: pandas.Series
    interaction: pandas.DataFrame  # what the additive fit leaves, optimizers x backbones
    interaction_std: float  # root mean square of the interaction, noise taken out if known
    interaction_std_low: float | None  # interval; None without seeds
    interaction_std_high: float | None
    noise_std: float | None  # between seeds within a cell; None without seeds
    permutation_p: float | None  # Freedman-Lane; None without seeds
    permutations: int
    tukey: Tukey | None  # None where the table is too small
    runs: int
    cells: int  # with a score
    replicated_cells: int  # with two or more
    missing_cells: int
    dropped: tuple[str, ...]  # optimizers left out of this decomposition


@dataclasses.dataclass(frozen=True)
class Families:
    """Contrast of two categories of optimizers on every backbone: median of one minus the other."""

    first: str  # category, e.g. "a"
    second: str  # e.g. "b"
    first_optimizers: tuple[str, ...]
    second_optimizers: tuple[str, ...]
    # index backbone: contrast, low, high (interval), p_value (Mann-Whitney), p_holm, n_first,
    # n_second, best_first, best_second (names)
    contrasts: pandas.DataFrame
    overall: float  # median contrast over backbones
    overall_low: float
    overall_high: float
    differs_p: float | None  # does the contrast differ between backbones (permutation test)
    description: str  # what was tested, in words


@dataclasses.dataclass(frozen=True)
class Structure:
    """Singular value decomposition of the interaction (a biplot of preferences)."""

    shares: pandas.Series  # of the interaction's sum of squares, by axis 1, 2, ...
    # By axis: 95th percentile of the share if the interaction were noise without structure.
    shares_by_chance: pandas.Series
    backbones: pandas.DataFrame  # coordinates, columns 1 and 2; inner products give the interaction
    optimizers: pandas.DataFrame
    # cosine between an axis and its bootstrap copies (median over resamples), by axis; 1 is stable.
    stability: pandas.Series | None
    resampled: str  # "seeds" or "optimizers": what the bootstrap drew


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Groups of backbones with similar preferences; the number by the gap statistic."""

    labels: pandas.Series  # by backbone: 1, 2, ...; all 1 if there are no groups
    number: int
    # index number of clusters: gap, standard_error, dispersion
    gap: pandas.DataFrame
    linkage: Any  # SciPy's linkage array, (backbones - 1, 4)
    order: tuple[str, ...]  # backbones as a dendrogram puts them
    optimizer_order: tuple[str, ...]  # optimizers likewise
    # share of bootstrap resamples in which two backbones share a cluster, backbones x backbones
    stability: pandas.DataFrame | None


@dataclasses.dataclass(frozen=True)
class Friedman:
    """Do optimizers differ in rank over backbones?"""

    statistic: float
    p_value: float
    iman_davenport_f: float
    iman_davenport_p: float
    kendall_w: float  # agreement of the backbones, 0 to 1
    backbones: int  # blocks
    optimizers: int
    # The same over families of backbones, whose members are not independent; None if unknown.
    family_p_value: float | None
    families: int | None


@dataclasses.dataclass(frozen=True)
class Nemenyi:
    """Mean ranks and the critical difference, as in Demsar (2006)."""

    mean_ranks: pandas.Series  # by optimizer, best first; 1 is best
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]  # optimizers that do not differ, for the diagram's bars
    p_values: pandas.DataFrame  # optimizers x optimizers
    backbones: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class Profiles:
    """Performance profiles (Dolan & More 2002; Dahl et al. 2023): share of backbones within tau."""

    by_regret: pandas.DataFrame  # index tau in the unit of the score, columns optimizers
    by_error_ratio: pandas.DataFrame | None  # index tau, error over the column's lowest error
    by_time_ratio: pandas.DataFrame | None  # index tau, seconds to target over the fastest
    scores: pandas.DataFrame  # index optimizer: regret, error_ratio, time_ratio: area, 0 to 1
    backbones: int


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Ordinal distance of tuned learning rate and weight decay to an optimizer's usual ones."""

    distances: pandas.DataFrame  # optimizers x backbones: steps in learning rate + weight decay
    learning_rate_steps: pandas.DataFrame
    weight_decay_steps: pandas.DataFrame
    # index backbone / optimizer: n, mean, q1, median, q3, max
    by_backbone: pandas.DataFrame
    by_optimizer: pandas.DataFrame
    modes: pandas.DataFrame  # index optimizer: learning_rate, weight_decay, n
    description: str


@dataclasses.dataclass(frozen=True)
class Budget:
    """Scores and coupling against the number of trials (expected best of k)."""

    # backbone, optimizer, trials (k), expected_best, standard_error, n (trials recorded)
    curves: pandas.DataFrame
    # index trials (k): interaction_std, interaction_share, mean_regret, cells
    coupling: pandas.DataFrame
    tuning_share: float | None  # share of the coupling at 1 trial that is gone at the largest k
    verdict: str  # in words: a cost of tuning or a ceiling
    # backbone, optimizer, learning_rate, weight_decay, score, best, gap: score with the setting
    # that won most often on the other backbones ("default"), and how far it is below the best
    defaults: pandas.DataFrame | None
    # mean of (winner's score in the search - score of fresh seeds on the same split), in the unit
    optimism: float | None
    optimism_low: float | None
    optimism_high: float | None
    optimism_cells: int


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
    # index backbone: n (optimizers with a score), seeds (median per cell), one_seed_cells,
    # coupling_rms, coupling_rms_low, coupling_rms_high, coupling_mad, worst_loss, worst_optimizer,
    # coupling_rms_without_failures, best_optimizer, best, best_share (bootstrap share of resamples
    # with this best), within_1, within_2 (number within 1 and 2 units of the best), mean_regret,
    # median_regret, sgd_minus_adamw, sgd_minus_adamw_low, sgd_minus_adamw_high,
    # strength ("weak", "moderate", "strong")
    backbones: pandas.DataFrame
    # index optimizer: n, seeds, one_seed_cells, coupling_rms, coupling_rms_low, coupling_rms_high,
    # coupling_mad, worst_loss, worst_backbone, mean_score, mean_regret, mean_regret_low,
    # mean_regret_high (over backbones), median_regret, worst_regret, share_within_1,
    # share_within_2, outliers, failed, category, strength
    optimizers: pandas.DataFrame
    regret: pandas.DataFrame  # best of the column minus the cell, >= 0, optimizers x backbones
    coupling: pandas.DataFrame  # residuals of the median polish, optimizers x backbones
    families: Families | None
    structure: Structure | None
    clusters: Clusters | None
    # index feature: kind, levels, n, in_sample_r2, error (leave one family out, root mean square),
    # error_without (same, with the mean alone), skill (1 - ratio of squares), p_value, helps
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
        """Everything as JSON-able dicts and lists; NaN and infinity become None."""
        raise NotImplementedError


def analyze(
    table: ScoreTable,
    *,
    rule: str = "paper_marks",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    categories: dict[str, str] | None = None,
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
      UserError: there is no score, the rule is unknown, the confidence is not between 0 and 1.
    """
    raise NotImplementedError
