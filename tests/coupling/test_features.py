"""Features of backbones: which predict a preference, and what is known of a name."""

import numpy as np
import pandas
import pytest

from bocb_jax.coupling import features


def test_features_that_predict_and_features_that_do_not():
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


def test_a_level_of_one_family_predicts_no_other_family():
    # In the sample it explains everything; on families that were not seen, nothing.
    families = [f"f{i}" for i in range(8)]
    known = pandas.DataFrame({"family": families, "mixer": families}, index=families)
    found = features.predict(pandas.Series(np.arange(8.0), families), known)
    assert found.loc["mixer", "in_sample_r2"] == pytest.approx(1)
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
