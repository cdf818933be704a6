"""Ranks, contrasts, axes, groups and features: against other sources and on planted effects."""

import itertools

import hypothesis
import numpy as np
import pandas
import pytest
import scikit_posthocs
import scipy.stats
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from bocb_jax.coupling import contrasts, features, significance, structure
from bocb_jax.coupling.cells import cells_of
from bocb_jax.coupling.scores import from_published


def frame(values):
    values = np.asarray(values, float)
    return pandas.DataFrame(
        values,
        index=[f"o{i}" for i in range(values.shape[0])],
        columns=[f"b{i}" for i in range(values.shape[1])],
    )


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


def test_nemenyi_is_that_of_scikit_posthocs():
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
def test_pairs_are_those_of_scipy_one_by_one(seed, rounded, missing):
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
    known = found["p_value"].notna()
    corrected = multipletests(found["p_value"][known], method="holm")[1]
    assert found["p_holm"][known].to_numpy() == pytest.approx(corrected)
    assert found["p_holm"][~known].isna().all()


def test_complete_leaves_out_the_sparse_optimizer_first():
    values = np.ones((4, 6))
    values[3, 1:] = np.nan
    values[0, 2] = np.nan
    assert significance.complete(frame(values)).shape == (3, 5)


def test_too_small_for_a_test():
    assert significance.friedman(frame(np.ones((2, 5))), None) is None
    assert significance.friedman(frame(np.ones((4, 5))), None) is None
    assert significance.nemenyi(frame(np.ones((4, 1)))) is None
    assert significance.pairwise(frame(np.ones((1, 5))), None) is None


def test_welch_is_that_of_scipy():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 4), rng.normal(1, 3, 6)
    expected = scipy.stats.ttest_ind(one, other, equal_var=False)
    low, high, p_value = significance.welch(one, other)
    interval = expected.confidence_interval(0.95)
    assert (low, high, p_value) == pytest.approx((interval.low, interval.high, expected.pvalue))
    assert np.isnan(significance.welch([1.0], [2.0, 3.0])).all()


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 3), (3, 8), (4, 4)])
def test_mann_whitney_counts_by_enumeration(first, second):
    counts = np.zeros(first * second + 1)
    for ranks in itertools.combinations(range(first + second), first):
        counts[sum(ranks) - first * (first - 1) // 2] += 1
    np.testing.assert_array_equal(contrasts.mann_whitney_counts(first, second), counts)


def test_hodges_lehmann_holds_what_the_test_does_not_reject():
    rng = np.random.default_rng(1)
    one, other = rng.normal(0, 1, 5), rng.normal(1, 1, 7)
    _, low, high = contrasts.hodges_lehmann(one, other, 0.95)
    for shift, inside in ((low + 1e-6, True), (low - 1e-6, False), (high + 1e-6, False)):
        p_value = scipy.stats.mannwhitneyu(one - shift, other, method="exact").pvalue
        assert (p_value > 0.05) == inside
    assert contrasts.hodges_lehmann(one[:2], other[:2], 0.95)[1:] == (-np.inf, np.inf)


def test_the_contrast_of_families_in_the_published_table():
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


def planted(rng, strength, noise=0.3):
    """Six backbones of two kinds, eight optimizers of two kinds; kinds prefer kinds."""
    kinds = np.outer([1.0, 1, 1, 1, -1, -1, -1, -1], [1.0, 1, 1, -1, -1, -1])
    return 70 + strength * kinds + noise * rng.standard_normal((8, 6))


def test_axes_and_groups_of_a_planted_preference():
    goodness = frame(planted(np.random.default_rng(0), 3.0))
    o, b = np.divmod(np.arange(48), 6)
    cells = cells_of(goodness.to_numpy().ravel(), o, b, (8, 6))
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


def test_dispersion_from_merges_is_that_of_the_groups():
    points = np.random.default_rng(0).standard_normal((9, 4))
    linkage = scipy.cluster.hierarchy.linkage(points, "ward")
    found = structure._dispersions(linkage, 5)
    for number in range(1, 6):
        labels = scipy.cluster.hierarchy.fcluster(linkage, number, "maxclust")
        within = sum(
            ((points[labels == g] - points[labels == g].mean(0)) ** 2).sum() for g in set(labels)
        )
        assert found[number - 1] == pytest.approx(within)


def test_backbones_without_groups_are_seldom_split():
    rng = np.random.default_rng(0)
    numbers = [
        structure.cluster(frame(rng.standard_normal((10, 8))), resamples=2, seed=0).number
        for _ in range(20)
    ]
    assert np.mean(np.array(numbers) == 1) > 0.8


def test_features_that_predict_and_that_do_not():
    rng = np.random.default_rng(0)
    families = np.repeat([f"f{i}" for i in range(10)], 2)
    norm = np.repeat(["batch", "layer"], 10)
    noise = np.repeat(rng.permutation(["x", "y"] * 5), 2)
    names = [f"b{i}" for i in range(20)]
    known = pandas.DataFrame({"family": families, "norm": norm, "other": noise}, index=names)
    target = pandas.Series(np.where(norm == "batch", 2.0, -2.0) + rng.normal(0, 0.3, 20), names)
    found = features.predict(target, known)
    assert found.loc["norm", "helps"]
    assert found.loc["norm", "skill"] > 0.9
    assert not found.loc["other", "helps"]
    # Left out by hand: the first family is guessed from the others with its level.
    others = target[(known["norm"] == "batch") & (known["family"] != "f0")].mean()
    alone = features.predict(target, known[["family", "norm"]].iloc[:])
    assert alone.loc["norm", "error"] > 0
    assert abs(others - 2) < 0.3


def test_a_label_that_belongs_to_one_family_predicts_no_other():
    # In the sample it explains everything; on families that were not seen, nothing.
    families = [f"f{i}" for i in range(8)]
    known = pandas.DataFrame({"family": families, "mixer": families}, index=families)
    found = features.predict(pandas.Series(np.arange(8.0), families), known)
    assert found.loc["mixer", "in_sample_r2"] == pytest.approx(1)
    assert found.loc["mixer", "skill"] <= 1e-9
    assert not found.loc["mixer", "helps"]


def test_taxonomy_knows_twins_sizes_and_strangers():
    found = features.features_of(["R-50", "resnet_mini", "vgg16", "vgg16_bn", "convnextv2_b", "mine"])
    assert found["family"].tolist() == ["resnet", "resnet", "plain", "plain", "convnext", "mine"]
    assert found["norm"].tolist()[:5] == ["batch", "batch", "none", "batch", "layer"]
    extra = pandas.DataFrame({"norm": ["group"], "depth": [3]}, index=["mine"])
    found = features.features_of(["R-50", "mine"], extra)
    assert found["norm"].tolist() == ["batch", "group"]
    assert found.loc["mine", "depth"] == 3
