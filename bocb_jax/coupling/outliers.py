"""Which cells are marked: the best, the top four, and those that failed by a named rule.

The paper's printed rule (its Eq. 1) does not give its printed marks: on CIFAR-100 it marks 258
cells, and the table has 50. `paper_marks` does give them.
"""

import dataclasses
import re

import numpy as np
import pandas

from bocb_jax.coupling.scores import ScoreTable
from bocb_jax.errors import UserError

# Median absolute deviation to standard deviation, for normal scores.
MAD_SCALE = 1.4826
# The paper's thresholds in points: CIFAR-100 and COCO, and ImageNet, where scores lie closer.
_PAPER_GAMMA = {"points": 3.0}
_IMAGENET_GAMMA = 1.0
# 2 points of accuracy near 75 percent are 0.1 in log-odds; of nats, by analogy.
_DEFAULT_MARGIN = {"points": 2.0, "log-odds": 0.1, "nats": 0.1}
_IMAGENET = {"imagenet", "imagenet1k", "imagenet2012"}


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


def paper_marks(goodness: pandas.DataFrame, margin: float) -> pandas.Series:
    """Cut of every column: median - max(margin, 1.4826 MAD)."""
    median = goodness.median()
    return median - (MAD_SCALE * (goodness - median).abs().median()).clip(lower=margin)


def paper_eq1(goodness: pandas.DataFrame, gamma: float) -> pandas.Series:
    """Cut of every column: max - min(interquartile range, gamma), the paper's Eq. 1 as printed."""
    spread = goodness.quantile(0.75) - goodness.quantile(0.25)
    return goodness.max() - spread.clip(upper=gamma)


def regret(goodness: pandas.DataFrame, delta: float) -> pandas.Series:
    """Cut of every column: max - delta."""
    return goodness.max() - delta


_RULES = {
    "paper_marks": (paper_marks, "worse than median - max({0:g} {1}, 1.4826 MAD) of its column"),
    "paper_eq1": (paper_eq1, "worse than best - min(IQR, {0:g} {1}) of its column (Eq. 1)"),
    "regret": (regret, "more than {0:g} {1} worse than the best of its column"),
}


def mark(table: ScoreTable, rule: str = "paper_marks") -> Marks:
    """Marks a table.

    Args:
      table: the scores.
      rule: "paper_marks", "paper_eq1" or "regret"; a number in brackets overrides the rule's
        parameter, in the unit of the score: "regret(0.5)".

    Raises:
      UserError: there is no such rule.
    """
    name, parameter = _parsed(rule, table)
    goodness = table.matrix() * (1 if table.higher_is_better else -1)
    function, description = _RULES[name]
    cuts = function(goodness, parameter)
    rank = goodness.rank(ascending=False, method="min")
    marks = pandas.DataFrame("inlier", index=goodness.index, columns=goodness.columns)
    marks = marks.mask(goodness < cuts, "outlier")
    # In a short column the fourth best may be an outlier: it is marked as one.
    marks = marks.mask((rank <= 4) & (goodness >= cuts), "top4").mask(rank == 1, "best")
    marks = marks.mask(goodness.isna(), "missing")
    return Marks(
        rule=f"{name}({parameter:g})",
        description=description.format(parameter, table.unit),
        marks=marks,
        cuts=cuts if table.higher_is_better else -cuts,
        outliers=int((marks == "outlier").to_numpy().sum()),
        cells=int(goodness.notna().to_numpy().sum()),
    )


def _parsed(rule: str, table: ScoreTable) -> tuple[str, float]:
    match = re.fullmatch(r"\s*([a-z_0-9]+)\s*(?:\(\s*([0-9.eE+-]+)\s*\))?\s*", rule)
    if not match or match[1] not in _RULES:
        raise UserError(f"There is no rule '{rule}' for marks. There are: {', '.join(_RULES)}.")
    name, number = match.groups()
    if number is not None:
        try:
            return name, float(number)
        except ValueError:
            raise UserError(f"The rule '{rule}' has a parameter that is not a number.") from None
    if str(table.dataset).lower() in _IMAGENET and table.unit == "points":
        return name, _IMAGENET_GAMMA
    margin = _DEFAULT_MARGIN[table.unit]
    return name, _PAPER_GAMMA.get(table.unit, margin) if name == "paper_eq1" else margin


def column_statistics(table: ScoreTable, marks: Marks) -> pandas.DataFrame:
    """Mean, spread and extremes of every column.

    Mean and std are taken without the worst score and the best two, std with divisor n, and the
    range without the worst: what reproduces the figures printed under the paper's CIFAR-100 table,
    though its caption speaks of the worst alone. Columns of fewer than six scores keep them all.
    """
    matrix = table.matrix()
    sign = 1 if table.higher_is_better else -1
    rows = {}
    for backbone in matrix:
        scores = matrix[backbone].dropna()
        ordered = np.sort(sign * scores.to_numpy())
        long = len(ordered) >= 6
        kept, without_worst = (ordered[1:-2], ordered[1:]) if long else (ordered, ordered)
        if not len(ordered):
            rows[backbone] = {"n": 0}
            continue
        median = scores.median()
        rows[backbone] = {
            "n": len(scores),
            "mean": sign * kept.mean(),
            "std": kept.std(),
            "range": without_worst[-1] - without_worst[0],
            "median": median,
            "mad": MAD_SCALE * (scores - median).abs().median(),
            "best": sign * ordered[-1],
            "worst": sign * ordered[0],
            "best_optimizer": (sign * scores).idxmax(),
            "worst_optimizer": (sign * scores).idxmin(),
            "outliers": int((marks.marks[backbone] == "outlier").sum()),
        }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("backbone")
