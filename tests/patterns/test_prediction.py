"""AUC, in the sample and on families left out, against scikit-learn and planted effects."""

import numpy as np
import pandas
import pytest
from sklearn.metrics import roc_auc_score

from bocb_jax.patterns import prediction

BACKBONES = [f"net{i}" for i in range(12)]
FAMILIES = pandas.Series([f"family{i // 3}" for i in range(12)], BACKBONES)


def cells(effect, seed=0, optimizers=8):
    """Return two failed cells per backbone; failure adds `effect` of the family to the metric."""
    random, rows = np.random.default_rng(seed), []
    for b, backbone in enumerate(BACKBONES):
        level = 10 * random.normal()  # backbones differ far more than failures do
        for o in range(optimizers):
            value = level + random.normal() + (effect[b // 3] if o < 2 else 0)
            rows.append({"backbone": backbone, "failed": o < 2, "alpha": value})
    return pandas.DataFrame(rows)


def test_areas_match_scikit_learn():
    random = np.random.default_rng(0)
    values = random.integers(0, 9, 40).astype(float)  # with ties
    labels = random.random((25, 40)) < 0.3
    expected = [roc_auc_score(row, values) for row in labels]
    np.testing.assert_allclose(prediction._areas(values, labels), expected)
    assert prediction._areas(values, np.zeros((1, 40), bool)) == 0.5


def test_a_planted_effect_carries_over_to_families_left_out():
    found = prediction.predict(cells([3] * 4), ["alpha"], FAMILIES, resamples=199).loc["alpha"]
    assert found["direction"] == "larger"
    # Two normals 3 standard deviations apart: Phi(3 / sqrt(2)) = .983; the median costs a little.
    assert found["auc"] == pytest.approx(0.983, abs=0.05)
    assert found["auc_out_of_family"] == pytest.approx(found["auc"])
    assert found["p_value"] == pytest.approx(1 / 200)
    assert (found["n"], found["failed"], found["families"]) == (96, 24, 4)


def test_an_effect_that_reverses_between_families_does_not():
    found = prediction.predict(cells([3, -3, 3, -3]), ["alpha"], FAMILIES, resamples=199)
    # The direction learned on three families is that of the pair which outnumbers the fourth's.
    assert found.at["alpha", "auc_out_of_family"] < 0.5
    assert found.at["alpha", "p_value"] > 0.05


def test_without_an_effect_p_values_are_uniform():
    values = [
        prediction.predict(cells([0] * 4, seed), ["alpha"], FAMILIES, resamples=99)["p_value"].iloc[
            0
        ]
        for seed in range(60)
    ]
    # Of 60 draws of a uniform p, 9 or fewer are under .05 with probability .999.
    assert np.mean(np.array(values) < 0.05) <= 0.15
    assert 0.3 < np.mean(values) < 0.7


def test_the_level_of_a_backbone_does_not_matter():
    """Failures occur in one half of the backbones only, and that half has larger values."""
    frame = cells([0] * 4)
    half = frame["backbone"].isin(BACKBONES[:6])
    frame["failed"] &= half
    frame["alpha"] += np.where(half, 100, 0)
    found = prediction.predict(frame, ["alpha"], FAMILIES, resamples=99).loc["alpha"]
    assert found["auc"] < 0.75


def test_too_few_cells_give_no_answer():
    frame = cells([3] * 4)
    assert prediction.predict(frame.head(8), ["alpha"], FAMILIES) is None
    one_family = frame.assign(failed=frame["failed"] & frame["backbone"].isin(BACKBONES[:3]))
    assert prediction.predict(one_family, ["alpha"], FAMILIES) is None
    assert prediction.predict(frame.assign(alpha=np.nan), ["alpha"], FAMILIES) is None
    found = prediction.predict(frame.assign(beta=frame["alpha"]), ["alpha", "beta"], FAMILIES,
                               resamples=99)  # fmt: skip
    np.testing.assert_allclose(found["p_holm"], 2 * found["p_value"])


def test_labels_are_permuted_within_backbones():
    frame = cells([0] * 4)
    failed, backbone = frame["failed"].to_numpy(), frame["backbone"].to_numpy()
    shuffled = np.random.default_rng(0).permutation(len(frame))
    failed, backbone = failed[shuffled], backbone[shuffled]
    random = np.random.default_rng(1)
    draws = np.stack([prediction._permute_within(failed, backbone, random) for _ in range(400)])
    for name in BACKBONES:
        assert (draws[:, backbone == name].sum(axis=1) == 2).all()
    # Every cell fails in a quarter of the draws: 5 standard deviations.
    assert np.abs(draws.mean(axis=0) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 400)
