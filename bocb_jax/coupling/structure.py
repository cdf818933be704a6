"""What the coupling looks like: axes of preference, and groups of backbones that share one."""

import dataclasses
from typing import Any

import numpy as np
import pandas
from scipy.cluster import hierarchy

from bocb_jax.coupling import decomposition

# Draws where each costs a decomposition; their percentiles need no more.
_DRAWS = 500
_REFERENCES = 200
_MOST_CLUSTERS = 8


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
    # share of bootstrap resamples (of optimizers) in which two backbones share a cluster
    stability: pandas.DataFrame | None


def decompose(
    interaction: pandas.DataFrame, cells: decomposition.Cells, *, resamples: int, seed: int
) -> Structure | None:
    """Axes of the interaction of the least-squares fit.

    Missing cells count as no interaction.

    Args:
      interaction: optimizers x backbones.
      cells: the runs of the same table.
      resamples: draws, at most 500.
      seed: of the draws.

    Returns:
      None for a table smaller than 3 x 3, or one without interaction.
    """
    values = interaction.fillna(0).to_numpy()
    if min(values.shape) < 3 or not np.abs(values).max() > 1e-9:
        return None
    rng = np.random.default_rng(seed)
    draws = min(resamples, _DRAWS)
    left, sizes, right = np.linalg.svd(values, full_matrices=False)
    # Double centering takes an axis away.
    axes = min(values.shape) - 1
    sizes, left, right = sizes[:axes], left[:, :axes], right[:axes]
    names = pandas.RangeIndex(1, axes + 1, name="axis")
    shares = pandas.Series(sizes**2 / (sizes**2).sum(), index=names)
    noise = rng.standard_normal((draws, *values.shape))
    noise -= noise.mean(axis=1, keepdims=True)
    noise -= noise.mean(axis=2, keepdims=True)
    squares = np.linalg.svd(noise, compute_uv=False)[:, :axes] ** 2
    by_chance = np.quantile(squares / squares.sum(axis=1, keepdims=True), 0.95, axis=0)
    means = decomposition.resampled_means(cells, draws, rng)
    if means is None:
        resampled = "optimizers"
        chosen = rng.integers(len(values), size=(draws, len(values)))
        copies = values[chosen]
        copies = copies - copies.mean(axis=1, keepdims=True)
    else:
        resampled = "seeds"
        copies = np.zeros((draws, *cells.shape))
        copies[:, cells.optimizer, cells.backbone] = cells.interaction(means)
    turned = np.linalg.svd(copies, full_matrices=False)[2][:, :axes]
    cosines = np.abs(np.einsum("kb,rkb->rk", right, turned))
    two = min(2, axes)
    # The sign of an axis is free: its largest backbone is put on the positive side.
    signs = np.sign(right[np.arange(axes), np.abs(right).argmax(axis=1)])
    scale = (np.sqrt(sizes) * signs)[:two]
    return Structure(
        shares=shares,
        shares_by_chance=pandas.Series(by_chance, index=names),
        backbones=pandas.DataFrame(
            right[:two].T * scale, index=interaction.columns, columns=names[:two]
        ),
        optimizers=pandas.DataFrame(
            left[:, :two] * scale, index=interaction.index, columns=names[:two]
        ),
        stability=pandas.Series(np.median(cosines, axis=0), index=names),
        resampled=resampled,
    )


def cluster(goodness: pandas.DataFrame, *, resamples: int, seed: int) -> Clusters | None:
    """Groups backbones by their ranking of the optimizers.

    Ranks within each backbone: neither its level nor one failed cell decides. Ward's method on
    them; the number of groups is the smallest k with gap(k) >= gap(k + 1) - its standard error
    (Tibshirani, Walther and Hastie 2001), with references drawn uniformly along the principal axes.
    A missing cell takes the middle rank.

    Args:
      goodness: optimizers x backbones, larger is better.
      resamples: of the stability, at most 500.
      seed: of the draws.

    Returns:
      None with fewer than four backbones or three optimizers.
    """
    ranks = goodness.rank(pct=True).sub(goodness.rank(pct=True).mean()).fillna(0).to_numpy().T
    backbones, optimizers = ranks.shape
    if backbones < 4 or optimizers < 3:
        return None
    rng = np.random.default_rng(seed)
    linkage = hierarchy.linkage(ranks, "ward")
    gap = _gap(ranks, linkage, rng)
    number = _chosen(gap)
    labels = _renumbered(hierarchy.fcluster(linkage, number, "maxclust"))
    together = np.zeros((backbones, backbones))
    draws = min(resamples, _DRAWS)
    if number > 1:
        for _ in range(draws):
            columns = rng.integers(optimizers, size=optimizers)
            copy = hierarchy.linkage(ranks[:, columns], "ward")
            drawn = hierarchy.fcluster(copy, number, "maxclust")
            together += drawn[:, None] == drawn
    names = goodness.columns
    columns = goodness.rank(axis=1, pct=True).fillna(0.5).to_numpy()
    return Clusters(
        labels=pandas.Series(labels, index=names),
        number=number,
        gap=gap,
        linkage=linkage,
        order=tuple(names[hierarchy.leaves_list(linkage)]),
        optimizer_order=tuple(
            goodness.index[hierarchy.leaves_list(hierarchy.linkage(columns, "ward"))]
        ),
        stability=(
            pandas.DataFrame(together / draws, index=names, columns=names) if number > 1 else None
        ),
    )


def _dispersions(linkage: np.ndarray, most: int) -> np.ndarray:
    """Within-group sums of squares for 1, ..., most groups, from the heights of Ward's merges."""
    merged = np.concatenate([[0], np.cumsum(linkage[:, 2] ** 2 / 2)])
    return merged[::-1][:most]


def _gap(points: np.ndarray, linkage: np.ndarray, rng: np.random.Generator) -> pandas.DataFrame:
    # One more than may be chosen: gap(k) is compared with gap(k + 1).
    most = min(_MOST_CLUSTERS, len(points) - 2) + 1
    center = points.mean(axis=0)
    turn = np.linalg.svd(points - center, full_matrices=False)[2]
    along = (points - center) @ turn.T
    low, high = along.min(axis=0), along.max(axis=0)
    floor = 1e-12 * max(float((along**2).sum()), 1e-12)
    own = np.log(np.maximum(_dispersions(linkage, most), floor))
    drawn = np.empty((_REFERENCES, most))
    for i in range(_REFERENCES):
        # Turning the box back changes no distance, so it stays as it is.
        reference = rng.uniform(low, high, size=along.shape)
        drawn[i] = _dispersions(hierarchy.linkage(reference, "ward"), most)
    drawn = np.log(np.maximum(drawn, floor))
    return pandas.DataFrame(
        {
            "gap": drawn.mean(axis=0) - own,
            "standard_error": drawn.std(axis=0) * np.sqrt(1 + 1 / _REFERENCES),
            "dispersion": np.exp(own),
        },
        index=pandas.RangeIndex(1, most + 1, name="clusters"),
    )


def _chosen(gap: pandas.DataFrame) -> int:
    values, errors = gap["gap"].to_numpy(), gap["standard_error"].to_numpy()
    enough = values[:-1] >= values[1:] - errors[1:]
    return int(enough.argmax()) + 1 if enough.any() else len(values) - 1


def _renumbered(labels: np.ndarray) -> np.ndarray:
    """Group 1 is that of the first backbone, 2 that of the first of the others, and so on."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse] + 1
