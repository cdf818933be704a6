"""Do weights that one optimizer pre-trained resemble each other more than those of others do?

Several sets of weights per optimizer of pre-training allow an exact test without any noise model:
if the optimizer of pre-training does not matter to fine-tuning, its name could be on any of them.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pandas

from bocb_jax.coupling.costs import cap_of, costs_of
from bocb_jax.coupling.score_table import ScoreTable

_MOST_LABELINGS = 20_000  # that are gone through; of more, so many are drawn


@dataclasses.dataclass(frozen=True)
class StartsTest:
    """Exact test that sets of weights of one optimizer are alike in how optimizers do on them."""

    # Share of the differences between starts, averages of each start and each optimizer apart,
    # that the optimizer of pre-training accounts for: 0 to 1.
    share: float
    expected: float  # that share if the names were on any of them: the mean over labelings
    p_value: float
    least_p: float  # that the test could have given
    labelings: int  # of all backbones together
    starts: int
    backbones: tuple[str, ...]  # on which an optimizer pre-trained two sets of weights at least


def starts_test(
    tables: dict[str, ScoreTable], *, resamples: int = 2000, seed: int = 0
) -> StartsTest | None:
    """Test whether the optimizer of pre-training decides which optimizers fine-tune well.

    Args:
      tables: from `replicates.tables_by_backbone`.
      resamples: draws, where several backbones have too many labelings together.
      seed: of the draws.

    Returns:
      None where no optimizer pre-trained two sets of weights.
    """
    between, total, starts = {}, 0.0, 0
    rng = np.random.default_rng(seed)
    for name, table in tables.items():
        vectors, labels = _vectors(table)
        if len(labels) <= len(np.unique(labels)) or len(np.unique(labels)) < 2:
            continue
        squares = float((vectors**2).sum())
        if not squares > 0:
            continue
        between[name] = np.array([_between(vectors, one) for one in _labelings(labels, rng)])
        total, starts = total + squares, starts + len(labels)
    if not between:
        return None
    sums, labelings = _sums(list(between.values()), resamples, rng)
    observed = sums[0]
    as_large = sums >= observed - 1e-9 * total
    return StartsTest(
        share=float(observed / total),
        expected=float(sums.mean() / total),
        p_value=float(as_large.mean()),
        least_p=1 / min(labelings, len(sums)),
        labelings=labelings,
        starts=starts,
        backbones=tuple(between),
    )


def _sums(
    between: list[np.ndarray], resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Return the statistic over backbones for all labelings, or for drawn ones; observed first."""
    labelings = math.prod(map(len, between))
    if labelings <= _MOST_LABELINGS:
        sums = between[0]
        for more in between[1:]:
            sums = (sums[:, None] + more[None, :]).ravel()
        return sums, labelings
    drawn = [np.r_[one[0], rng.choice(one, resamples)] for one in between]
    return np.sum(drawn, axis=0), labelings


def _vectors(table: ScoreTable) -> tuple[np.ndarray, np.ndarray]:
    """Return costs without the means of starts and of optimizers, and the label of each start.

    (starts, optimizers) and (starts,). Optimizers that do not tell on every start are left out.
    """
    runs = table.runs.assign(backbone=table.runs["start"])
    each = dataclasses.replace(table, runs=runs)
    costs = costs_of(each).dropna().clip(upper=cap_of(table.equal))
    names = table.runs.drop_duplicates("start").set_index("start")["backbone"]
    labels, _ = pandas.factorize(names.reindex(costs.columns))
    values = costs.to_numpy().T
    if not values.size:
        return values, labels
    values = values - values.mean(axis=1, keepdims=True)
    return values - values.mean(axis=0), labels


def _between(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Return the sum of squares between the means of labels; what is left is within them."""
    members = (labels[:, None] == np.unique(labels)).astype(float)
    counts = members.sum(axis=0)
    return float((((members.T @ vectors) ** 2).sum(axis=1) / counts).sum())


def _labelings(labels: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the labels as they are, then every other way to put starts together that differs.

    Labels of equally many starts may change their names: that is the same way.
    """
    sizes = np.bincount(labels)
    ways = math.factorial(len(labels))
    for size in sizes:
        ways //= math.factorial(int(size))
    for count in np.bincount(sizes)[1:]:
        ways //= math.factorial(int(count))
    if ways > _MOST_LABELINGS:
        yield labels
        for _ in range(_MOST_LABELINGS // 10):
            yield rng.permutation(labels)
        return
    own = _canonical(labels, sizes)
    yield labels
    for one in _partitions(tuple(range(len(labels))), tuple(sorted(map(int, sizes)))):
        found = np.empty(len(labels), int)
        for label, members in enumerate(one):
            found[list(members)] = label
        if _canonical(found, np.bincount(found)) != own:
            yield found


def _canonical(labels: np.ndarray, sizes: np.ndarray) -> frozenset[frozenset[int]]:
    return frozenset(frozenset(np.flatnonzero(labels == i).tolist()) for i in range(len(sizes)))


def _partitions(
    items: tuple[int, ...], sizes: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield every partition of items into parts of these sizes, once each."""
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for size in sorted(set(sizes)):
        others = list(sizes)
        others.remove(size)
        for more in itertools.combinations(rest, size - 1):
            left = tuple(item for item in rest if item not in more)
            for tail in _partitions(left, tuple(others)):
                yield ((first, *more), *tail)
