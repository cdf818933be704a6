"""One optimizer against others by seed: planted differences, blocks, what failed."""

import dataclasses

import numpy as np
import pytest
from helpers.score_tables import table_of

from bocb_jax.coupling import paired
from bocb_jax.coupling.best import dunnett_quantile
from bocb_jax.coupling.paired import compare_overall, compare_paired, judge_paired


def drawn(rng, means, seeds, sigma=0.3, block=2.0):
    """Scores of (optimizers, backbones) means with noise, and an effect of each seed."""
    means = np.asarray(means, float)
    shared = block * rng.standard_normal((1, means.shape[1], seeds))
    noise = sigma * rng.standard_normal((*means.shape, seeds))
    return table_of(means[..., None] + shared + noise)


def test_effects_of_seeds_cancel():
    rng = np.random.default_rng(0)
    table = drawn(rng, np.full((4, 3), 80.0), 4, sigma=0.0)
    found = compare_paired(table, "o0")
    assert found["difference"].to_numpy() == pytest.approx(0, abs=1e-9)
    assert (found["high"] < 1e-6).all()
    assert len(found) == 9
    assert set(judge_paired(table, "o0", found)["verdict"]) == {"as good"}


def test_where_it_helps_and_where_it_fails():
    means = np.array([[83.0, 80, 75, 80], [80, 80, 80, 80], [79, 79.8, 81, 70]])
    table = drawn(np.random.default_rng(1), means, 5)
    found = judge_paired(table, "o0", compare_paired(table, "o0"))
    assert found["verdict"].tolist() == ["helps", "as good", "fails", "as good"]
    assert found.at["b2", "rival"] == "o2"


def test_it_fails_where_it_diverged_and_two_seeds_that_differ_decide_nothing():
    table = drawn(np.random.default_rng(2), np.full((3, 4), 80.0), 2, sigma=2.0)
    lost = (table.runs["optimizer"] == "o0") & (table.runs["backbone"] == "b1")
    runs = table.runs.assign(
        score=table.runs["score"].mask(lost), status=np.where(lost, "diverged", "finished")
    )
    table = dataclasses.replace(table, runs=runs)
    found = judge_paired(table, "o0", compare_paired(table, "o0"))
    assert found.at["b1", "verdict"] == "fails"
    assert (found["verdict"].drop("b1") == "undecided").all()
    # Where nothing else finished either, the backbone says nothing about o0.
    here = runs["backbone"] == "b1"
    runs = runs.assign(score=runs["score"].mask(here), status=runs["status"].mask(here, "diverged"))
    table = dataclasses.replace(table, runs=runs)
    assert judge_paired(table, "o0", compare_paired(table, "o0")).at["b1", "verdict"] == "undecided"


def test_the_intervals_hold_together_as_often_as_they_say():
    rng = np.random.default_rng(3)
    held = []
    for _ in range(300):
        means = 80 + rng.standard_normal((4, 4))
        found = compare_paired(drawn(rng, means, 3), "o0")
        true = np.concatenate([means[0, b] - means[1:, b] for b in range(4)])
        inside = (found["low"] <= true) & (true <= found["high"])
        held += list(inside.groupby(found["backbone"]).all())
    assert np.mean(held) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(held))


def test_without_seeds_nothing_is_shown():
    table = drawn(np.random.default_rng(4), np.full((3, 2), 80.0), 1)
    found = compare_paired(table, "o0")
    assert found["low"].isna().all()
    assert set(judge_paired(table, "o0", found)["verdict"]) == {"undecided"}


def test_over_all_backbones_the_same_optimizer_twice_is_equal():
    rng = np.random.default_rng(5)
    means = 80 + 3 * rng.standard_normal((4, 5))
    means[1] = means[0]
    means[2] = means[0] - 2
    found = compare_overall(drawn(rng, means, 3), "o0")
    assert found.at["o1", "verdict"] == "equal"
    assert found.at["o2", "verdict"] == "ahead"
    assert found.at["o2", "difference"] == pytest.approx(2, abs=0.5)
    assert (found["n"] == 5).all()


def test_overall_intervals_hold_together_as_often_as_they_say():
    rng = np.random.default_rng(6)
    held = []
    for _ in range(300):
        # The same difference on every backbone, so that it is the mean by any weights.
        means = 80 + rng.standard_normal(4) + rng.standard_normal((4, 1))
        found = compare_overall(drawn(rng, means, 3), "o0")
        true = means[0, 0] - means[1:, 0]
        held.append(bool(((found["low"] <= true) & (true <= found["high"])).all()))
    assert np.mean(held) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(held))


def test_a_backbone_of_noisy_seeds_does_not_hide_what_the_others_show():
    rng = np.random.default_rng(7)
    table = drawn(rng, np.full((4, 5), 80.0), 4, block=0)
    noisy = table.runs["backbone"] == "b4"
    table.runs.loc[noisy, "score"] += 8 * rng.standard_normal(noisy.sum())
    assert (compare_overall(table, "o0")["verdict"] == "equal").all()


def test_backbones_that_differ_count_nearly_alike():
    rng = np.random.default_rng(8)
    means = np.full((4, 5), 80.0)
    means[0, 4] = 110  # o0 is 30 points ahead on b4 alone, whose seeds are noisier
    table = drawn(rng, means, 4, block=0)
    noisy = table.runs["backbone"] == "b4"
    table.runs.loc[noisy, "score"] += 4 * rng.standard_normal(noisy.sum())
    assert (compare_overall(table, "o0")["difference"] > 4).all()  # 6 in truth


def test_weights_are_those_of_a_published_meta_analysis():
    # The six trials of Borenstein et al. 2009, chapter 14, weights by statsmodels 0.14's
    # combine_effects(method_re="iterated", atol=1e-12).
    effects = np.array([0.0945, 0.2774, 0.3665, 0.6644, 0.4618, 0.1852])
    variances = np.array([0.0329, 0.0307, 0.0499, 0.0105, 0.0426, 0.0234])
    weights = paired._meta_weights(effects, variances)
    expected = [0.15293888, 0.15923557, 0.11714412, 0.25601714, 0.13023280, 0.18443149]
    np.testing.assert_allclose(weights, expected, atol=1e-7)


def test_a_backbone_whose_seeds_agree_exactly_shows_no_more_than_others():
    rng = np.random.default_rng(7)
    scores = 80 + 0.3 * rng.standard_normal((4, 5, 3))
    scores[:, 4] = 80.0
    found = compare_paired(table_of(scores), "o0").set_index("backbone")
    half = (found["high"] - found["difference"]).groupby("backbone").first()
    assert 0.1 < half["b4"] <= half.drop("b4").min()


def test_the_spread_of_each_figure_stands_in_for_seeds():
    table = drawn(np.random.default_rng(8), np.full((3, 2), 80.0), 1)
    table = dataclasses.replace(table, runs=table.runs.assign(spread=0.5))
    found = compare_paired(table, "o0")
    half = dunnett_quantile(0.975, 2, np.inf, 0.5) * 0.5 * np.sqrt(2)
    assert (found["high"] - found["difference"]).to_numpy() == pytest.approx(half)
