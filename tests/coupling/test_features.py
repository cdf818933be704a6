"""Features of backbones: which predict a preference, and what is known of a name."""

import numpy as np
import pandas
import pytest
import scipy.stats

from bocb_jax.coupling import analyze, features
from bocb_jax.coupling.scores import from_published


def test_features_that_predict_and_features_that_do_not():
    rng = np.random.default_rng(0)
    families = np.repeat([f"f{i}" for i in range(10)], 2)
    norm = np.repeat(["batch", "layer"], 10)
    noise = np.repeat(rng.permutation(["x", "y"] * 5), 2)
    names = [f"b{i}" for i in range(20)]
    known = pandas.DataFrame({"family": families, "norm": norm, "other": noise}, index=names)
    target = pandas.Series(np.where(norm == "batch", 2.0, -2.0) + rng.normal(0, 0.3, 20), names)
    found = features.predict(target, known)
    assert found["helps"].to_dict() == {"norm": True, "other": False}
    assert found.loc["norm", "skill"] > 0.6
    assert found.loc["norm", "sign_skill"] == 1
    # Of the 252 ways to deal two levels to five families each, only two separate the signs so.
    assert found.loc["norm", ["assignments", "exact"]].tolist() == [252, True]
    assert found.loc["norm", "sign_p_value"] == pytest.approx(2 / 252)


def test_skill_by_hand():
    # Ranks 1, 2, 3, 4 of four families; left out in turn, the other of the level is the guess.
    known = pandas.DataFrame(
        {"family": list("pqrs"), "norm": ["layer", "layer", "batch", "batch"]}, index=list("abcd")
    )
    found = features.predict(pandas.Series([-9.0, -1, 2, 3], list("abcd")), known).loc["norm"]
    without = (1 - 3) ** 2 + (2 - 8 / 3) ** 2 + (3 - 7 / 3) ** 2 + (4 - 2) ** 2
    assert found["skill"] == pytest.approx(1 - 4 / without)
    # Two of the six ways to deal the levels separate the ranks as much.
    assert found["p_value"] == pytest.approx(2 / 6)
    assert not found["helps"]


def test_permutation_of_two_levels_agrees_with_scipy():
    # The spread of the means of two levels is a function of their difference.
    rng = np.random.default_rng(3)
    names = [f"b{i}" for i in range(9)]
    known = pandas.DataFrame({"family": names, "norm": ["batch"] * 4 + ["layer"] * 5}, index=names)
    target = pandas.Series(rng.standard_normal(9) + np.repeat([1, 0], [4, 5]), names)
    ranks = target.rank().to_numpy()
    expected = scipy.stats.permutation_test(
        (ranks[:4], ranks[4:]), lambda x, y: abs(x.mean() - y.mean()), alternative="greater"
    )
    found = features.predict(target, known).loc["norm"]
    assert found["p_value"] == pytest.approx(expected.pvalue)


def test_random_assignments_stand_in_for_too_many():
    names = [f"b{i}" for i in range(20)]
    known = pandas.DataFrame({"family": names, "norm": ["x", "y"] * 10}, index=names)
    target = pandas.Series(np.arange(20.0), names)
    found = features.predict(target, known, resamples=300).loc["norm"]
    assert found[["assignments", "exact"]].tolist() == [300, False]
    assert 0 < found["p_value"] <= 1


def test_preferences_of_one_sign_have_no_skill_of_signs():
    names = list("abcdef")
    known = pandas.DataFrame({"family": names, "norm": ["x", "y"] * 3}, index=names)
    found = features.predict(pandas.Series(np.arange(6.0) + 1, names), known).loc["norm"]
    assert found[["sign_skill", "sign_p_value", "sign_p_holm"]].isna().all()


def test_the_stem_predicts_the_camp_on_the_published_table():
    found = analyze(from_published("cifar100"), resamples=50).features
    stem = found.loc["stem"]
    assert found.index[0] == "stem"
    assert (round(stem["skill"], 2), round(stem["sign_skill"], 2)) == (0.59, 0.81)
    # 12 families, five with a convolutional stem: 792 ways, and none separates better.
    assert stem["p_value"] == stem["sign_p_value"] == pytest.approx(1 / 792)
    assert stem["p_holm"] == pytest.approx(6 / 792)
    assert found.index[found["helps"]].tolist() == ["stem"]


def test_a_level_of_one_family_predicts_no_other_family():
    families = [f"f{i}" for i in range(8)]
    known = pandas.DataFrame({"family": families, "mixer": families}, index=families)
    found = features.predict(pandas.Series(np.arange(8.0), families), known)
    assert found.loc["mixer", "skill"] <= 1e-9
    assert not found.loc["mixer", "helps"]


def test_features_of_twins_other_sizes_and_unknown_backbones():
    found = features.features_of(
        ["R-50", "resnet_mini", "vgg16", "vgg16_bn", "convnextv2_b", "mine"]
    )
    assert found["family"].tolist() == ["resnet", "resnet", "plain", "plain", "convnext", "mine"]
    assert found["norm"].tolist()[:5] == ["batch", "batch", "none", "batch", "layer"]
    extra = pandas.DataFrame({"norm": ["group"], "depth": [3]}, index=["mine"])
    found = features.features_of(["R-50", "mine"], extra)
    assert found["norm"].tolist() == ["batch", "group"]
    assert found.loc["mine", "depth"] == 3
