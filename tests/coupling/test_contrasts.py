"""The contrast of two categories of optimizers: by enumeration, by SciPy, by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from bocb_jax.coupling import contrasts, features
from bocb_jax.coupling.scores import from_published


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 3), (3, 8), (4, 4)])
def test_mann_whitney_counts_by_enumeration(first, second):
    counts = np.zeros(first * second + 1)
    for ranks in itertools.combinations(range(first + second), first):
        counts[sum(ranks) - first * (first - 1) // 2] += 1
    np.testing.assert_array_equal(contrasts.mann_whitney_counts(first, second), counts)


def test_hodges_lehmann_covers_the_shifts_that_the_test_does_not_reject():
    rng = np.random.default_rng(1)
    one, other = rng.normal(0, 1, 5), rng.normal(1, 1, 7)
    _, low, high = contrasts.hodges_lehmann(one, other, 0.95)
    for shift, inside in ((low + 1e-6, True), (low - 1e-6, False), (high + 1e-6, False)):
        p_value = scipy.stats.mannwhitneyu(one - shift, other, method="exact").pvalue
        assert (p_value > 0.05) == inside
    assert contrasts.hodges_lehmann(one[:2], other[:2], 0.95)[1:] == (-np.inf, np.inf)


def test_category_contrast_of_the_published_table():
    table = from_published()
    taxonomy = features.features_of(table.backbones)
    found = contrasts.contrast(table, contrasts.category_of(table.optimizers), taxonomy["family"])
    scores = table.matrix()
    by_hand = (
        scores.loc[["SGD-M", "SGDP", "LION"]].median()
        - scores.loc[
            ["Adam", "Adamax", "NAdam", "AdamW", "LAMB", "RAdam", "AdamP", "Adan"]
        ].median()
    )
    np.testing.assert_allclose(found.contrasts["contrast"], by_hand)
    assert (found.permutations, found.exact) == (165, True)
    assert 1 / 165 <= found.differs_p <= 1
    assert (found.contrasts["p_holm"] > 0.05).sum() == 20
