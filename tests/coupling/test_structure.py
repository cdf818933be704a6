"""Axes and clusters: of planted preferences, and of noise."""

import numpy as np
import pytest
import scipy.cluster.hierarchy
from helpers.score_tables import cells_of, frame

from bocb_jax.coupling import structure


def planted(rng, strength, noise=0.3):
    """Six backbones of two kinds, eight optimizers of two kinds; kinds prefer kinds."""
    kinds = np.outer([1.0, 1, 1, 1, -1, -1, -1, -1], [1.0, 1, 1, -1, -1, -1])
    return 70 + strength * kinds + noise * rng.standard_normal((8, 6))


def test_axes_and_clusters_of_a_planted_preference():
    goodness = frame(planted(np.random.default_rng(0), 3.0))
    cells = cells_of(goodness.to_numpy()[..., None])
    interaction = frame(cells.grid(cells.interaction(cells.means(cells.values))))
    found = structure.decompose(interaction, cells, resamples=100, seed=0)
    assert found.shares[1] > 0.95 > found.shares_by_chance[1]
    assert found.shares.sum() == pytest.approx(1)
    assert (np.sign(found.backbones[1]) == np.sign(found.backbones[1].iloc[0])).sum() == 3
    assert found.stability[1] > 0.99
    rebuilt = found.optimizers[[1]].to_numpy() @ found.backbones[[1]].to_numpy().T
    assert np.abs(rebuilt - interaction).max().max() < 1
    groups = structure.cluster(goodness, resamples=50, seed=0)
    assert groups.number == 2
    assert groups.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert groups.stability.loc["b0", "b1"] > 0.9 > groups.stability.loc["b0", "b5"]
    permuted = structure.cluster(goodness.iloc[::-1, ::-1], resamples=50, seed=0)
    assert permuted.number == 2


def test_dispersion_from_merges_equals_that_of_the_clusters():
    points = np.random.default_rng(0).standard_normal((9, 4))
    linkage = scipy.cluster.hierarchy.linkage(points, "ward")
    found = structure._dispersions(linkage, 5)
    for number in range(1, 6):
        labels = scipy.cluster.hierarchy.fcluster(linkage, number, "maxclust")
        within = sum(
            ((points[labels == g] - points[labels == g].mean(0)) ** 2).sum() for g in set(labels)
        )
        assert found[number - 1] == pytest.approx(within)


def test_noise_is_seldom_split_into_clusters():
    rng = np.random.default_rng(0)
    numbers = [
        structure.cluster(frame(rng.standard_normal((10, 8))), resamples=2, seed=0).number
        for _ in range(20)
    ]
    assert np.mean(np.array(numbers) == 1) > 0.8
