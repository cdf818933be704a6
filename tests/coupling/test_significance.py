"""Tests of the interaction and of ranks, against other sources and on planted coupling."""

import itertools

import hypothesis
import numpy as np
import pandas
import pytest
import scikit_posthocs
import scipy.stats
from helpers.score_tables import cells_of, frame, random_scores
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from bocb_jax.coupling import significance

TABLES = 1000


def test_friedman_and_nemenyi_on_a_published_example():
    # Demsar (2006), table 6: four classifiers on fourteen data sets, ranks 3.143, 2.000, 2.893,
    # 1.964; chi-square 9.28, F 3.69; critical difference 1.25 at 0.05.
    scores = np.array([
        [.763, .768, .771, .798], [.599, .591, .590, .569], [.954, .971, .968, .967],
        [.628, .661, .654, .657], [.882, .888, .886, .898], [.936, .931, .916, .931],
        [.661, .668, .609, .685], [.583, .583, .563, .625], [.775, .838, .866, .875],
        [1., 1., 1., 1.], [.940, .962, .965, .962], [.619, .666, .614, .669],
        [.972, .981, .9751, .975], [.957, .978, .946, .970],
    ])  # fmt: skip
    table = frame(scores.T)
    found = significance.friedman(table, None)
    nemenyi = significance.nemenyi(table)
    assert nemenyi.mean_ranks.round(3).to_dict() == {
        "o3": 1.964, "o1": 2.0, "o2": 2.893, "o0": 3.143,
    }  # fmt: skip
    assert nemenyi.critical_difference == pytest.approx(1.25, abs=0.005)
    # His statistic has no correction for ties; SciPy's has, and is larger.
    plain = 12 * 14 / 20 * ((nemenyi.mean_ranks**2).sum() - 4 * 25 / 4)
    assert plain == pytest.approx(9.28, abs=0.01)
    assert found.statistic == scipy.stats.friedmanchisquare(*scores.T)[0] > plain
    f = 13 * found.statistic / (14 * 3 - found.statistic)
    assert found.iman_davenport_p == pytest.approx(scipy.stats.f.sf(f, 3, 39))
    assert nemenyi.groups == (("o3", "o1", "o2", "o0"),)


def test_nemenyi_agrees_with_scikit_posthocs():
    table = frame(np.random.default_rng(0).standard_normal((5, 12)) + np.arange(5)[:, None])
    found = significance.nemenyi(table)
    expected = scikit_posthocs.posthoc_nemenyi_friedman(table.to_numpy().T).to_numpy()
    np.testing.assert_allclose(found.p_values, expected)
    # The critical difference and the p-values say the same.
    ranks = found.mean_ranks
    for one, other in itertools.combinations(table.index, 2):
        apart = abs(ranks[one] - ranks[other]) > found.critical_difference
        assert apart == (found.p_values.loc[one, other] < 0.05)


@hypothesis.given(seed=st.integers(0, 10**6), rounded=st.booleans(), missing=st.integers(0, 6))
@hypothesis.settings(max_examples=10, deadline=None)
def test_pairwise_tests_agree_with_scipy(seed, rounded, missing):
    rng = np.random.default_rng(seed)
    values = rng.normal(70, 2, (4, 9))
    values = values.round() if rounded else values
    values[rng.integers(4, size=missing), rng.integers(9, size=missing)] = np.nan
    table = frame(values)
    found = significance.pairwise(table, None).set_index(["first", "second"])
    for one, other in itertools.combinations(table.index, 2):
        difference = (table.loc[one] - table.loc[other]).dropna().to_numpy()
        sizes = np.abs(difference)
        row = found.loc[one, other]
        assert row["n"] == len(difference)
        if not sizes.any() or len(difference) < 2:
            continue
        tied = len(set(sizes)) < len(sizes) or not sizes.all()
        expected = scipy.stats.wilcoxon(
            difference, zero_method="pratt", method="asymptotic" if tied else "exact"
        )
        assert row["p_value"] == pytest.approx(expected.pvalue)
    corrected = significance.holm(found["p_value"])
    pandas.testing.assert_series_equal(found["p_holm"], corrected, check_names=False)


@pytest.mark.parametrize("count", [1, 8, 40])
def test_holms_correction_is_statsmodels(count):
    rng = np.random.default_rng(count)
    p_values = pandas.Series(rng.beta(0.3, 1, count).round(3))  # with ties, and ones
    p_values = p_values.where(p_values.index % 5 != 3)
    known = p_values.notna()
    corrected = multipletests(p_values[known], method="holm")[1]
    assert significance.holm(p_values)[known].to_numpy() == pytest.approx(corrected)
    assert significance.holm(p_values)[~known].isna().all()


def test_complete_drops_sparse_optimizers_first():
    values = np.ones((4, 6))
    values[3, 1:] = np.nan
    values[0, 2] = np.nan
    assert significance.without_gaps(frame(values)).shape == (3, 5)


def test_tables_too_small_for_rank_tests():
    assert significance.friedman(frame(np.ones((2, 5))), None) is None
    assert significance.friedman(frame(np.ones((4, 5))), None) is None
    assert significance.nemenyi(frame(np.ones((4, 1)))) is None
    assert significance.pairwise(frame(np.ones((1, 5))), None) is None


def test_welch_agrees_with_scipy():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 4), rng.normal(1, 3, 6)
    expected = scipy.stats.ttest_ind(one, other, equal_var=False)
    low, high, p_value = significance.welch(one, other)
    interval = expected.confidence_interval(0.95)
    assert (low, high, p_value) == pytest.approx((interval.low, interval.high, expected.pvalue))
    assert np.isnan(significance.welch([1.0], [2.0, 3.0])).all()


def test_tukeys_test_by_the_textbook_formula():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((5, 4)) + np.outer(np.arange(5), np.arange(4))
    row = values.mean(1) - values.mean()
    column = values.mean(0) - values.mean()
    explained = (row @ values @ column) ** 2 / ((row**2).sum() * (column**2).sum())
    left = values - values.mean() - row[:, None] - column
    rest = ((left**2).sum() - explained) / 11
    found = significance.tukey_test(cells_of(values[..., None]))
    assert found.f == pytest.approx(explained / rest)
    assert found.p_value == pytest.approx(scipy.stats.f.sf(explained / rest, 1, 11))


def rejected(tables, shape, permutations, interaction=0.0, seed=1):
    rng = np.random.default_rng(seed)
    found = [
        significance.interaction_permutation_test(
            cells_of(random_scores(rng, shape, interaction)), permutations, rng
        )
        for _ in range(tables)
    ]
    return np.mean(np.array(found) <= 0.05)


def test_without_coupling_the_permutation_test_rejects_one_in_twenty():
    assert 0.035 <= rejected(TABLES, (5, 4, 3), permutations=199) <= 0.065


def test_the_permutation_test_finds_planted_coupling():
    assert rejected(50, (5, 4, 3), permutations=199, interaction=2.0) > 0.95
