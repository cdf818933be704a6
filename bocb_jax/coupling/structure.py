"""Structure of the coupling: axes of preference, and clusters of backbones that share one."""

import dataclasses

import numpy as np
import pandas
from scipy.cluster import hierarchy
from scipy.spatial import distance

from bocb_jax.coupling.cells import MOST_CELLS, Cells, resampled_means

# At most so many draws where each costs a decomposition; their percentiles need no more.
_DRAWS = 500
_FEWEST_DRAWS, _MOST_NUMBERS = 100, 2**20  # of all draws together
_REFERENCES = 200
_MOST_CLUSTERS = 8


@dataclasses.dataclass(frozen=True)
class Structure:
    """Singular value decomposition of the interaction (a biplot of preferences)."""

    shares: pandas.Series  # of the interaction's sum of squares, by axis 1, 2, ...
    # By axis, the 95th percentile of the share if the interaction were unstructured noise.
    shares_by_chance: pandas.Series
    backbones: pandas.DataFrame  # coordinates on axes 1 and 2; inner products give the interaction
    optimizers: pandas.DataFrame  # likewise
    # By axis, median cosine between the axis and its bootstrap copies; 1 is stable.
    stability: pandas.Series | None
    resampled: str  # what the bootstrap drew: "seeds" or "optimizers"


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Clusters of backbones with similar preferences; the gap statistic gives their number."""

    labels: pandas.Series  # by backbone: 1, 2, ...; all 1 if there is one cluster
    number: int
    gap: pandas.DataFrame  # index number of clusters: gap, standard_error, dispersion
    linkage: np.ndarray  # (backbones - 1, 4), as SciPy has it
    order: tuple[str, ...]  # backbones in the order of a dendrogram
    optimizer_order: tuple[str, ...]  # optimizers likewise
    # Share of bootstrap resamples (of optimizers) in which two backbones share a cluster.
    stability: pandas.DataFrame | None


def decompose(
    interaction: pandas.DataFrame, cells: Cells, *, resamples: int, seed: int
) -> Structure | None:
    """Decompose the interaction of the least-squares fit into axes.

    Missing cells count as no interaction.

    Args:
      interaction: optimizers x backbones.
      cells: the runs of the same table.
      resamples: draws, at most 500.
      seed: of the draws.

    Returns:
      None for a table smaller than 3 x 3 or of more than `MOST_CELLS`, or without interaction.
    """
    values = interaction.fillna(0).to_numpy()
    if min(values.shape) < 3 or values.size > MOST_CELLS or not np.abs(values).max() > 1e-9:
        return None
    rng = np.random.default_rng(seed)
    draws = min(resamples, _DRAWS, max(_FEWEST_DRAWS, _MOST_NUMBERS // values.size))
    left, sizes, right = np.linalg.svd(values, full_matrices=False)
    # Double centering removes one axis.
    axes = min(values.shape) - 1
    sizes, left, right = sizes[:axes], left[:, :axes], right[:axes]
    names = pandas.RangeIndex(1, axes + 1, name="axis")
    shares = pandas.Series(sizes**2 / (sizes**2).sum(), index=names)
    by_chance = _shares_by_chance(values.shape, axes, draws, rng)
    copies, resampled = _bootstrap_copies(values, cells, draws, rng)
    copied_axes = np.linalg.svd(copies, full_matrices=False)[2][:, :axes]
    cosines = np.abs(np.einsum("kb,rkb->rk", right, copied_axes))
    two = min(2, axes)
    # The sign of an axis is arbitrary: the backbone farthest out gets a positive coordinate.
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


def _shares_by_chance(
    shape: tuple[int, ...], axes: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the 95th percentile of each axis' share in double-centered normal noise."""
    noise = rng.standard_normal((draws, *shape))
    noise -= noise.mean(axis=1, keepdims=True)
    noise -= noise.mean(axis=2, keepdims=True)
    squares = np.linalg.svd(noise, compute_uv=False)[:, :axes] ** 2
    return np.quantile(squares / squares.sum(axis=1, keepdims=True), 0.95, axis=0)


def _bootstrap_copies(
    values: np.ndarray, cells: Cells, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Return (draws, optimizers, backbones) resampled interactions, and what was resampled."""
    means = resampled_means(cells, draws, rng)
    if means is None:
        copies = values[rng.integers(len(values), size=(draws, len(values)))]
        return copies - copies.mean(axis=1, keepdims=True), "optimizers"
    copies = np.zeros((draws, *cells.shape))
    copies[:, cells.optimizer, cells.backbone] = cells.interaction(means)
    return copies, "seeds"


def cluster(goodness: pandas.DataFrame, *, resamples: int, seed: int) -> Clusters | None:
    """Cluster backbones by their ranking of the optimizers, with Ward's method.

    With ranks within each backbone neither its level nor one failed cell dominates; a missing cell
    takes the middle rank. The number of clusters is the smallest k with
    gap(k) >= gap(k + 1) - its standard error (Tibshirani, Walther and Hastie 2001), with references
    drawn uniformly along the principal axes.

    Args:
      goodness: optimizers x backbones, larger is better.
      resamples: of the stability, at most 500.
      seed: of the draws.

    Returns:
      None with fewer than four backbones or three optimizers, or more than `MOST_CELLS`.
    """
    if goodness.size > MOST_CELLS:
        return None
    ranks = goodness.rank(pct=True).sub(goodness.rank(pct=True).mean()).fillna(0).to_numpy().T
    backbones, optimizers = ranks.shape
    if backbones < 4 or optimizers < 3:
        return None
    rng = np.random.default_rng(seed)
    linkage = _ward(ranks)
    gap = _gap(ranks, linkage, rng)
    number = _chosen(gap)
    labels = _renumbered(hierarchy.fcluster(linkage, number, "maxclust"))
    together = _together(ranks, number, min(resamples, _DRAWS), rng) if number > 1 else None
    names = goodness.columns
    columns = goodness.rank(axis=1, pct=True).fillna(0.5).to_numpy()
    return Clusters(
        labels=pandas.Series(labels, index=names),
        number=number,
        gap=gap,
        linkage=linkage,
        order=tuple(names[hierarchy.leaves_list(linkage)]),
        optimizer_order=tuple(goodness.index[hierarchy.leaves_list(_ward(columns))]),
        stability=(
            None if together is None else pandas.DataFrame(together, index=names, columns=names)
        ),
    )


def _together(ranks: np.ndarray, number: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often two backbones share a cluster when the optimizers are resampled."""
    backbones, optimizers = ranks.shape
    together = np.zeros((backbones, backbones))
    for _ in range(draws):
        columns = rng.integers(optimizers, size=optimizers)
        copy = _ward(ranks[:, columns])
        drawn = hierarchy.fcluster(copy, number, "maxclust")
        together += drawn[:, None] == drawn
    return together / draws


def _ward(points: np.ndarray) -> np.ndarray:
    """Return Ward's linkage of (n, k) points.

    SciPy gets their distances, since it takes some square tables of points for distances.
    """
    return hierarchy.linkage(distance.pdist(points), "ward")


def _dispersions(linkage: np.ndarray, most: int) -> np.ndarray:
    """Return within-cluster sums of squares for 1, ..., most clusters, from Ward's heights."""
    merged = np.concatenate([[0], np.cumsum(linkage[:, 2] ** 2 / 2)])
    return merged[::-1][:most]


def _gap(points: np.ndarray, linkage: np.ndarray, rng: np.random.Generator) -> pandas.DataFrame:
    """Return the gap statistic of 1, 2, ... clusters of points (backbones, optimizers)."""
    # One more than may be chosen, because gap(k) is compared with gap(k + 1).
    most = min(_MOST_CLUSTERS, len(points) - 2) + 1
    center = points.mean(axis=0)
    turn = np.linalg.svd(points - center, full_matrices=False)[2]
    along = (points - center) @ turn.T
    low, high = along.min(axis=0), along.max(axis=0)
    floor = 1e-12 * max(float((along**2).sum()), 1e-12)
    own = np.log(np.maximum(_dispersions(linkage, most), floor))
    drawn = np.empty((_REFERENCES, most))
    for i in range(_REFERENCES):
        # Rotating the box back would change no distance.
        reference = rng.uniform(low, high, size=along.shape)
        drawn[i] = _dispersions(_ward(reference), most)
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
    """Number clusters by first appearance: 1 is that of the first backbone, and so on."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse] + 1
