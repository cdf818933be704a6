"""What the paper claims, each claim held against the table at hand.

A claim of a kind of backbones or optimizers needs several of that kind: backbones of one family
count once, because they share a design. Where a table has too few for a test to reach 5 percent,
the claim cannot be judged there, however clear the figures look.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas
from scipy import stats

from bocb_jax import paper
from bocb_jax.coupling.camps import classic_of, leads
from bocb_jax.coupling.costs import costs_of
from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.rounding import p_text, significant
from bocb_jax.paper import taxonomy
from bocb_jax.paper.categories import to_opt
from bocb_jax.paper.taxonomy import find, to_model

HOLDS, FAILS, OPEN = "holds", "does not", "cannot be judged here"
_LEVEL = 0.05
_MOST_SUBSETS = 20_000  # that a permutation test goes through; else so many random ones
# Fewer optimizers in common give no correlation worth a sentence.
_LEAST_SHARED = 6
_RECOMMENDED = ("lamb", "adamw", "adan")  # the first three of the paper's Table 4
_NEED_LEAST_TUNING = ("lamb", "adamw")  # by the paper's figure 5
_SENSITIVE = ("convnext_t", "moganet_s")  # by the paper's section 4


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a table says about a claim."""

    figure: str  # a sentence with the numbers; empty where the table has none
    n: int  # independent units behind it: families of backbones, or optimizers
    verdict: str  # HOLDS, FAILS or OPEN
    detail: str  # the rule, and what limits it


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper, and how to judge it."""

    text: str
    judge: Callable[[Analysis], Finding]


def judge(analysis: Analysis) -> pandas.DataFrame:
    """Return what the table says about each of `CLAIMS`.

    Returns:
      A row a claim: claim, figure (a sentence), n (families or optimizers behind it), verdict
      ("holds", "does not", "cannot be judged here") and detail (the rule).
    """
    rows = [{"claim": claim.text} | dataclasses.asdict(claim.judge(analysis)) for claim in CLAIMS]
    return pandas.DataFrame(rows, columns=["claim", "figure", "n", "verdict", "detail"])


# -- of camps --------------------------------------------------------------------------------------


def _interaction(analysis: Analysis) -> Finding:
    found = analysis.interaction
    rule = "Holds if the test of the interaction rejects the additive model at 5 percent."
    if found is None:
        return Finding("", 0, OPEN, f"{rule} The noise of these figures is not known.")
    own = analysis.shares["scale"] == analysis.table.unit
    shares = [f"{value:.0%}" for value in analysis.shares["interaction"][own].dropna()]
    figure = (
        f"The interaction's mean square is {significant(found.statistic)} times that of the noise"
    )
    figure += f" ({p_text(found.p_value)})"
    figure += f"; it is {shares[0]} of the variance" if shares else ""
    figure += f", {shares[1]} without the optimizers that fail." if shares[1:] else "."
    verdict = HOLDS if found.p_value <= _LEVEL else OPEN
    return Finding(figure, found.cells, verdict, f"{rule} {found.description} n counts cells.")


def _favor(classic: bool) -> Callable[[Analysis], Finding]:
    """Return the judge of a camp: that classic CNNs favor SGD-like optimizers, or modern adaptive.

    Args:
      classic: whether it is about classic CNNs.
    """

    def finding(analysis: Analysis) -> Finding:
        kinds = classic_of(analysis.table.backbones)
        points = leads(analysis.preference)
        side = points[kinds.reindex(points.index).eq(classic)]
        towards = side if classic else -side
        means = _family_means(analysis, towards).dropna()
        agree, number = int((means > 0).sum()), len(means)
        detail = (
            "Holds if the sign test over families rejects at 5 percent, one-sided, for which five "
            "must agree; does not if it does for the reverse."
        )
        if not number:
            return Finding("", 0, OPEN, f"{detail} There is none with optimizers of both kinds.")
        p_value, reverse = (
            float(stats.binomtest(count, number, alternative="greater").pvalue)
            for count in (agree, int((means < 0).sum()))
        )
        winners, kind = ("SGD-like", "classic CNNs") if classic else ("Adaptive", "modern nets")
        figure = (
            f"{winners} optimizers lead on {int((towards > 0).sum())} of {len(towards)} {kind} and "
            f"on {agree} of {number} families ({p_text(p_value)}); SGD-like minus adaptive is "
            f"{_median(side, analysis)} in the median."
        )
        return Finding(figure, number, _verdict(p_value, reverse), detail)

    return finding


def _differ(analysis: Analysis) -> Finding:
    found = analysis.camps
    detail = (
        "Holds if the exact rank-sum test over families rejects at 5 percent, one-sided; does not "
        "if it does for the reverse."
    )
    number = sum(found.families)
    if found.p_value is None or found.reverse_p_value is None:
        return Finding("", number, OPEN, f"{detail} There are too few families.")
    kinds, points = classic_of(analysis.table.backbones), leads(analysis.preference)
    sides = [points[kinds.reindex(points.index).eq(side)] for side in (True, False)]
    figure = (
        f"SGD-like minus adaptive optimizers: {_median(sides[0], analysis)} on classic "
        f"CNNs and {_median(sides[1], analysis)} on modern nets in the median "
        f"({p_text(found.p_value)})."
    )
    return Finding(figure, number, _verdict(found.p_value, found.reverse_p_value), detail)


# -- of optimizers ---------------------------------------------------------------------------------


def _category_d(analysis: Analysis) -> Finding:
    costs, kinds = _mean_costs(analysis), analysis.optimizers["category"]
    detail = (
        "Holds if a permutation of the optimizers among the categories rejects at 5 percent, also "
        "without the worst of category d; does not if it does for another category against d, at 5 "
        "percent over their number."
    )
    means = costs.groupby(kinds.reindex(costs.index)).mean()
    members = costs[kinds.reindex(costs.index) == "d"].sort_values()
    if len(members) < 2 or len(means) < 2:
        return Finding("", len(members), OPEN, f"{detail} It needs two of d and another category.")
    worst, others = str(members.index[-1]), means.drop("d")
    figure = (
        f"Mean regret {_amount(means['d'], analysis)} in category d, against "
        + ", ".join(f"{_rounded(value)} in {name}" for name, value in others.items())
        + f"; without {worst} {_amount(members.iloc[:-1].mean(), analysis)}."
    )
    whole = _subset_p(costs, members.index, larger=True)
    without = _subset_p(costs.drop(worst), members.index[:-1], larger=True)
    rivals = [costs.index[kinds.reindex(costs.index) == name] for name in others.index]
    reverse = len(rivals) * min(
        _subset_p(costs[rival.union(members.index)], rival, larger=True) for rival in rivals
    )
    verdict = _verdict(max(whole, without), reverse)
    detail += f" {p_text(whole).capitalize()}, without {worst} {p_text(without)}."
    return Finding(figure, len(members), verdict, detail)


def _recommended(analysis: Analysis) -> Finding:
    costs = _mean_costs(analysis)
    return _group_of_optimizers(
        costs,
        _RECOMMENDED,
        f"Mean regret over {analysis.table.goodness().notna().any().sum()} backbones",
        lambda value: _amount(value, analysis),
    )


def _least_tuning(analysis: Analysis) -> Finding:
    found = analysis.hyperparameters
    distances = pandas.Series(dtype=float) if found is None else found.by_optimizer["mean"].dropna()
    return _group_of_optimizers(
        distances,
        _NEED_LEAST_TUNING,
        "Distance of the tuned values to the usual ones",
        lambda value: f"{value:.2f} steps",
    )


def _group_of_optimizers(
    values: pandas.Series, names: tuple[str, ...], what: str, written: Callable[[float], str]
) -> Finding:
    """Judge that some optimizers have low values.

    Args:
      values: of every optimizer.
      names: of the optimizers, as this project writes them.
      what: the values are.
      written: turns a value into words.
    """
    own = values[[to_opt(name) in names for name in values.index]].sort_values()
    others = values.drop(own.index)
    detail = (
        "Holds if a permutation of the optimizers rejects at 5 percent; does not if it does for "
        "the reverse. The paper chose them by its CIFAR-100 table, for which this is no fresh test."
    )
    if len(own) < 2 or len(others) < 3:
        return Finding(
            "", len(own), OPEN, f"{detail} It needs two of {', '.join(names)} and three others."
        )
    p_value = _subset_p(values, own.index, larger=False)
    ranks = values.rank(method="min").astype(int)
    listed = ", ".join(f"{name} {written(own[name])} (rank {ranks[name]})" for name in own.index)
    figure = (
        f"{what}: {listed}; on average over the other {len(others)} {written(others.mean())} "
        f"({p_text(p_value)})."
    )
    verdict = _verdict(p_value, _subset_p(values, own.index, larger=True))
    return Finding(figure, len(own), verdict, detail)


def _carries_over(analysis: Analysis) -> Finding:
    table = analysis.table
    name = "imagenet" if table.dataset == "cifar100" else "cifar100"
    detail = (
        f"Ranks of the optimizers here and in the paper's table '{name}', on the backbones that "
        "both have. Holds if a permutation of the optimizers rejects at 5 percent; does not if it "
        "does for the reverse."
    )
    scores = paper.table(name)
    here, there = _by_model(costs_of(table)), _by_model(scores.max() - scores)
    backbones = [backbone for backbone in here if backbone in there]
    optimizers = here.index.intersection(there.index)
    pairs = here.loc[optimizers, backbones].notna() & there.loc[optimizers, backbones].notna()
    optimizers = optimizers[pairs.all(axis=1)]
    if not backbones or len(optimizers) < _LEAST_SHARED:
        return Finding("", len(optimizers), OPEN, f"{detail} Too little is in both.")
    first, second = (side.loc[optimizers, backbones].rank().to_numpy() for side in (here, there))
    if min(np.ptp(first, axis=0).min(), np.ptp(second, axis=0).min()) <= 0:
        return Finding("", len(optimizers), OPEN, f"{detail} There are only ties.")
    first, second = (stats.zscore(side, axis=0) for side in (first, second))
    orders = np.random.default_rng(0).permuted(
        np.tile(np.arange(len(optimizers)), (2000, 1)), axis=1
    )
    own = float((first * second).mean())
    drawn = np.array([(first[order] * second).mean() for order in orders])
    p_value, reverse = (
        float((1 + (side * drawn >= side * own - 1e-9).sum()) / (1 + len(drawn)))
        for side in (1, -1)
    )
    figure = (
        f"Rank correlation {own:z.2f} over {len(optimizers)} optimizers on {len(backbones)} "
        f"{'backbone' if len(backbones) == 1 else 'backbones'} ({p_text(p_value)})."
    )
    return Finding(figure, len(optimizers), _verdict(p_value, reverse), detail)


def _by_model(costs: pandas.DataFrame) -> pandas.DataFrame:
    """Return the same with this project's names, where the paper adds recipe and epochs to some."""

    def model(name: str) -> str:
        first = to_model(name.partition("_")[0])
        return first if first in taxonomy.backbones() else to_model(name)

    named = costs.rename(index=to_opt, columns=model)
    return named.loc[~named.index.duplicated(), ~named.columns.duplicated()]


# -- of backbones ----------------------------------------------------------------------------------


def _modern_cost_more(analysis: Analysis) -> Finding:
    kinds = classic_of(analysis.table.backbones)
    return _sides(analysis, kinds.eq(False), kinds.eq(True), "modern nets", "classic CNNs")


def _sensitive(analysis: Analysis) -> Finding:
    known = {name: find(name) for name in analysis.table.backbones}
    inside = pandas.Series(
        {name: of is not None and of.model in _SENSITIVE for name, of in known.items()}
    )
    families = analysis.taxonomy["family"]
    modern = classic_of(analysis.table.backbones).eq(False)
    others = modern & ~families.isin(set(families[inside]))
    return _sides(analysis, inside, others, "ConvNeXt and MogaNet", "other modern nets")


def _resscale(analysis: Analysis) -> Finding:
    scaled = pandas.Series(
        {
            name: (known := find(name)) is not None and "resscale" in known.residual
            for name in analysis.table.backbones
        }
    )
    modern = classic_of(analysis.table.backbones).eq(False)
    return _sides(
        analysis, modern & ~scaled, scaled, "other modern nets", "MetaFormers with ResScale"
    )


def _sides(
    analysis: Analysis, high: pandas.Series, low: pandas.Series, costly: str, cheap: str
) -> Finding:
    """Judge that a wrong choice costs more on some backbones than on others.

    Args:
      analysis: of the table.
      high, low: by backbone, whether it is of the side that costs more, of the other.
      costly, cheap: what these sides are, in words.
    """
    stakes = costs_of(analysis.table).quantile(0.9).dropna()
    detail = (
        "A wrong choice is the 90 percent quantile of the regrets. Holds if the exact rank-sum "
        "test over families rejects at 5 percent, one-sided; does not if it does for the reverse."
    )
    sides = [stakes[side.reindex(stakes.index).astype(bool)] for side in (high, low)]
    means = [_family_means(analysis, side) for side in sides]
    number = sum(map(len, means))
    if not all(map(len, means)):
        return Finding("", number, OPEN, f"{detail} One side has no backbone.")
    verdict, p_value = _ordered(*means)
    figure = (
        f"{_amount(sides[0].median(), analysis)} on {costly} ({len(sides[0])}) and "
        f"{_amount(sides[1].median(), analysis)} on {cheap} ({len(sides[1])}) in the median; "
        f"{len(means[0])} against {len(means[1])} families ({p_text(p_value)})."
    )
    if 1 / math.comb(number, len(means[0])) > _LEVEL:
        detail += " Of so few families no order does."
    return Finding(figure, number, verdict, detail)


# -- tests and words -------------------------------------------------------------------------------


def _mean_costs(analysis: Analysis) -> pandas.Series:
    return costs_of(analysis.table).mean(axis=1).dropna()


def _subset_p(values: pandas.Series, members: pandas.Index, *, larger: bool) -> float:
    """Return in what share of subsets of that size the mean is at least as large, or as small."""
    sign = 1 if larger else -1
    numbers, size = sign * values.to_numpy(float), len(members)
    own = sign * values[members].to_numpy(float).mean() - 1e-9
    if math.comb(len(numbers), size) <= _MOST_SUBSETS:
        subsets = np.array(list(itertools.combinations(range(len(numbers)), size)))
        return float((numbers[subsets].mean(axis=1) >= own).mean())
    rng = np.random.default_rng(0)
    drawn = rng.permuted(np.tile(numbers, (2000, 1)), axis=1)[:, :size].mean(axis=1)
    return float((1 + (drawn >= own).sum()) / (1 + len(drawn)))


def _ordered(high: pandas.Series, low: pandas.Series) -> tuple[str, float]:
    """Return whether values of families are higher on one side, and the one-sided p-value."""
    p_value, reverse = (
        float(stats.mannwhitneyu(high, low, alternative=side, method="exact").pvalue)
        for side in ("greater", "less")
    )
    return _verdict(p_value, reverse), p_value


def _verdict(p_value: float, reverse: float) -> str:
    """Return what the one-sided tests of a claim and of its reverse say."""
    return HOLDS if p_value <= _LEVEL else FAILS if reverse <= _LEVEL else OPEN


def _family_means(analysis: Analysis, values: pandas.Series) -> pandas.Series:
    """Average values of backbones over families."""
    return values.groupby(analysis.taxonomy["family"].reindex(values.index).to_numpy()).mean()


def _rounded(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 0.95 else significant(value, 2)


def _amount(value: float, analysis: Analysis) -> str:
    table = analysis.table
    return f"{_rounded(table.distances(value))} {table.distance_unit}"


def _median(leading: pandas.Series, analysis: Analysis) -> str:
    """Return the median of those leads that are known in the unit, in words."""
    known = leading[np.isfinite(leading)]
    return "unknown" if known.empty else _amount(known.median(), analysis)


CLAIMS = (
    Claim("Backbone and optimizer depend on one another.", _interaction),
    Claim("Classic CNNs favor SGD-like optimizers.", _favor(classic=True)),
    Claim("ViT, ConvNeXt and other modern nets favor adaptive optimizers.", _favor(classic=False)),
    Claim("Classic CNNs and modern nets differ in what they favor.", _differ),
    Claim("On modern nets a wrong choice costs more than on classic CNNs.", _modern_cost_more),
    Claim("Among modern nets, ConvNeXt and MogaNet are the sensitive ones.", _sensitive),
    Claim("MetaFormers with ResScale are less sensitive than other modern nets.", _resscale),
    Claim("Category d, adaptive rates without momentum, is the worst.", _category_d),
    Claim("LAMB, AdamW and Adan are the ones to start with.", _recommended),
    Claim("LAMB and AdamW need the least tuning.", _least_tuning),
    Claim("What holds on CIFAR-100 carries over to other data.", _carries_over),
)
