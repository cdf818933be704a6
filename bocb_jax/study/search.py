"""Which learning rates and weight decays a search tries next, given the scores so far.

Pure functions of the search and the scores: a sweep that was killed asks again and gets the same
answers. Every search is centered on the optimizer's usual values.
"""

import dataclasses
import math
from collections.abc import Mapping

from bocb_jax.study.spec import Search


@dataclasses.dataclass(frozen=True)
class Point:
    """One trial of a search."""

    lr: float
    weight_decay: float
    share: float = 1.0  # of the epochs; below 1 on the lower rungs of successive halving


Scores = Mapping[Point, float]  # higher is better; a failed trial scores minus infinity


def propose(
    search: Search,
    center: tuple[float, float],
    scores: Scores,
    tuned: tuple[float, float] | None = None,
) -> list[Point]:
    """Return every trial a search asks for so far; once each has a score, the search is over.

    Args:
      search: the kind of search and its options.
      center: the usual learning rate and weight decay of the optimizer.
      scores: of the trials that have ended.
      tuned: the paper's values for the pair, or for a similar one; None where there are none.
    """
    if search.kind == "around":
        points = _around(search, center, scores)
    elif search.kind == "halton":
        points = _halton(search, center)
    elif search.kind == "grid":
        rates = search.lr or [center[0] * factor for factor in search.lr_factors or (1.0,)]
        decays = search.weight_decay or [
            center[1] * factor for factor in search.weight_decay_factors or (1.0,)
        ]
        points = [Point(_clean(lr), _clean(decay)) for lr in rates for decay in decays]
    else:
        points = [Point(*(tuned or center) if search.kind == "published" else center)]
    points = list(dict.fromkeys(points))  # a weight decay of 0 is 0 whatever the factor
    return _halved(search, points, scores) if search.halving else points


def winner(points: list[Point], scores: Scores) -> Point | None:
    """Return the best trial at full length, the first of equals; None if all failed."""
    whole = [point for point in points if point.share == 1 and scores[point] > -math.inf]
    return max(whole, key=scores.__getitem__, default=None)


def shares_of_trials(search: Search, center: tuple[float, float]) -> list[float]:
    """Return the share of the epochs of each trial that is sure to be made.

    These are the trials before the grid moves; with successive halving, those of all rungs.
    """
    first = propose(dataclasses.replace(search, halving=0.0), center, {})
    if not search.halving:
        return [point.share for point in first]
    shares, count = list[float](), len(first)
    for rung in range(search.rungs, -1, -1):
        shares += [_clean(search.halving**-rung)] * count
        count = max(1, math.floor(count / search.halving))
    return shares


def _clean(value: float) -> float:
    """Return the number as a person would write it: 0.001 for 0.0010000000000000002."""
    return float(f"{value:.6g}")


# --- Around the usual values, as in the paper -----------------------------------------------------


def step_of(value: float) -> int:
    """Return the step of the ladder ..., 0.5, 1, 2, 5, ... nearest to a value, in logarithms."""
    near = 3 * math.floor(math.log10(value))
    return min(range(near - 1, near + 5), key=lambda n: abs(math.log(ladder(n) / value)))


def ladder(step: int) -> float:
    """Return the value at a step of the ladder: 1 at 0, 2 at 1, 5 at 2, 10 at 3."""
    decade, digit = divmod(step, 3)
    return float(f"{(1, 2, 5)[digit]}e{decade}")


@dataclasses.dataclass
class _Axis:
    """One axis of the grid: consecutive values, extended where the best lies at an edge."""

    values: list[float]
    first: int | None  # step of the first value; None if that is zero

    @classmethod
    def around(cls, center: float, count: int) -> "_Axis":
        if center == 0:  # zero is the lower end; above it the values are 1e-6, 1e-5, ...
            return cls([0.0, *(float(f"1e{n}") for n in range(-6, -7 + count))], None)
        first = step_of(center) - count // 2
        return cls([ladder(first + i) for i in range(count)], first)

    def grow(self, best: float) -> bool:
        """Add a value beyond the edge where the best lies; return False if it lies inside."""
        if len(self.values) == 1:
            return False
        if best == self.values[-1]:
            following = best * 10 if self.first is None else ladder(self.first + len(self.values))
            self.values.append(_clean(following) if best else 1e-6)
        elif best == self.values[0] and self.first is not None:
            self.first -= 1
            self.values.insert(0, ladder(self.first))
        else:
            return False
        return True


def _around(search: Search, center: tuple[float, float], scores: Scores) -> list[Point]:
    rates = _Axis.around(center[0], search.lr_steps)
    decays = _Axis.around(center[1], search.weight_decay_steps)
    moves = [search.moves, search.moves]
    while True:
        points = [Point(lr, decay) for lr in rates.values for decay in decays.values]
        if any(point not in scores for point in points):
            return points
        best = winner(points, scores)
        if best is None:
            return points
        grown = False
        for i, (axis, value) in enumerate(((rates, best.lr), (decays, best.weight_decay))):
            if moves[i] and axis.grow(value):
                moves[i] -= 1
                grown = True
        if not grown:
            return points


# --- The same number of quasi-random points for each pair-----------------------------------------


def _halton(search: Search, center: tuple[float, float]) -> list[Point]:
    """Return log-uniform points over both spans, from a scrambled Halton sequence."""
    from scipy.stats import qmc

    decays = center[1] > 0
    sequence = qmc.Halton(2 if decays else 1, scramble=True, rng=search.seed)
    points = []
    for row in sequence.random(search.trials):
        lr = center[0] * search.lr_span ** (2 * row[0] - 1)
        decay = center[1] * search.weight_decay_span ** (2 * row[1] - 1) if decays else 0.0
        points.append(Point(_clean(lr), _clean(decay)))
    return points


# --- Successive halving ---------------------------------------------------------------------------


def _halved(search: Search, points: list[Point], scores: Scores) -> list[Point]:
    """Return rungs of growing length: the best of each are trained anew, and longer, on the next.

    Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization", AISTATS 2016.
    """
    asked, field = [], points
    for rung in range(search.rungs, -1, -1):
        share = _clean(search.halving**-rung)
        runners = [dataclasses.replace(point, share=share) for point in field]
        asked += runners
        if rung == 0 or any(point not in scores for point in runners):
            return asked
        kept = max(1, math.floor(len(runners) / search.halving))
        field = sorted(runners, key=scores.__getitem__, reverse=True)[:kept]
    return asked
