"""Noise between seeds: recovered where it was planted, moderated as by hand, given by the user."""

import dataclasses

import numpy as np
import pytest
from helpers.score_tables import one_seed_table, random_scores, table_of
from scipy import special

from bocb_jax.coupling.best import compare_with_best
from bocb_jax.coupling.noise import estimate_noise, fit_prior, noise_of

ERROR = 1 / np.sqrt(2 * 16)  # relative, of a standard deviation with 16 degrees of freedom


def test_the_prior_of_many_variances_is_the_planted_one():
    rng = np.random.default_rng(0)
    true = 0.09 * 6 / rng.chisquare(6, 20_000)  # scaled inverse chi-square, 6 degrees of freedom
    variance, weight = fit_prior(true * rng.chisquare(16, 20_000) / 16, np.full(20_000, 16.0))
    assert variance == pytest.approx(0.09, rel=0.03)
    assert weight == pytest.approx(6, rel=0.08)


def test_the_moments_of_the_fitted_prior_are_those_of_the_data():
    # The defining equations of Smyth (2004), section 6.2, of three variances with 4 degrees.
    variances, degrees = np.array([0.1, 0.4, 2.0]), np.full(3, 4.0)
    variance, weight = fit_prior(variances, degrees)
    logs = np.log(variances) - special.digamma(2) + np.log(2)
    assert special.polygamma(1, weight / 2) == pytest.approx(
        logs.var(ddof=1) - special.polygamma(1, 2), rel=1e-6
    )
    assert np.log(variance) == pytest.approx(
        logs.mean() + special.digamma(weight / 2) - np.log(weight / 2)
    )


def test_equal_noise_is_pooled_and_one_noisy_backbone_keeps_its_own():
    rng = np.random.default_rng(1)
    scores = random_scores(rng, (8, 6, 3), noise=0.3)
    equal = estimate_noise(table_of(scores))
    assert equal["sd"].to_numpy() == pytest.approx(np.full(6, 0.3), rel=3 * ERROR)
    assert (equal["df"] > equal["own_df"]).all()
    assert equal["own_df"].tolist() == [16.0] * 6
    noisy = scores + np.where(np.arange(6) == 2, 1.5, 0)[:, None] * rng.standard_normal((8, 6, 3))
    found = estimate_noise(table_of(noisy))
    assert found.at["b2", "sd"] > 2 * found["sd"].drop("b2").max()
    assert found["sd"].drop("b2").to_numpy() == pytest.approx(np.full(5, 0.3), rel=3 * ERROR)


def test_sources_of_noise():
    one = one_seed_table(np.arange(12.0).reshape(4, 3))
    assert estimate_noise(one)["sd"].isna().all()
    assert set(estimate_noise(one)["source"]) == {"unknown"}
    given = estimate_noise(dataclasses.replace(one, noise=0.2))
    assert set(given["source"]) == {"given"}
    assert set(given["sd"]) == {0.2}
    runs = one.runs.assign(spread=0.5)
    printed = estimate_noise(dataclasses.replace(one, runs=runs))
    assert set(printed["source"]) == {"spread"}
    assert printed["sd"].to_numpy() == pytest.approx(np.full(3, 0.5))


def test_a_backbone_without_seeds_takes_the_noise_of_the_others():
    scores = random_scores(np.random.default_rng(2), (6, 5, 3), noise=0.3)
    scores[:, 4, 1:] = np.nan
    found = estimate_noise(table_of(scores))
    assert found.at["b4", "source"] == "other backbones"
    assert found.at["b4", "sd"] == pytest.approx(0.3, rel=0.3)


def test_constant_scores_do_not_divide_by_zero():
    found = estimate_noise(table_of(np.full((3, 4, 3), 70.0)))
    assert found["sd"].isna().all()
    assert set(found["source"]) == {"unknown"}
    some = np.full((3, 4, 3), 70.0)
    some[:, 0] += np.random.default_rng(3).standard_normal((3, 3))
    assert (estimate_noise(table_of(some))["sd"] > 0).all()


def test_a_cell_that_is_noisier_than_its_backbone_keeps_its_own_noise():
    rng = np.random.default_rng(4)
    scores = random_scores(rng, (8, 5, 4), noise=0.3)
    scores[2, 1] = 80 + 3 * np.array([-1.0, 0.2, 1.1, -0.4])
    found = estimate_noise(table_of(scores))
    assert list(found.at["b1", "noisy"]) == ["o2"]
    assert found.at["b1", "own_df"] == 7 * 3
    assert found.at["b1", "sd"] == pytest.approx(0.3, rel=3 / np.sqrt(2 * 7 * 3))
    sd, df = noise_of(found, "b1", ["o1", "o2"])
    assert sd[1] == pytest.approx(scores[2, 1].std(ddof=1))
    assert df.tolist() == [found.at["b1", "df"], 3]


def test_equal_cells_are_rarely_called_noisy():
    rng = np.random.default_rng(5)
    tables = [estimate_noise(table_of(rng.standard_normal((8, 4, 3)))) for _ in range(100)]
    flagged = sum(bool(noisy) for found in tables for noisy in found["noisy"])
    # 1 percent of 400 backbones: 4, with a standard deviation of 2.
    assert flagged <= 4 + 3 * 2


def test_a_backbone_without_digits_does_not_loosen_the_noise_of_the_others():
    scores = random_scores(np.random.default_rng(6), (6, 6, 3), noise=0.3)
    without = estimate_noise(table_of(scores[:, :5]))
    scores[:, 5] = scores[:, 5, :1]  # seeds agree exactly
    found = estimate_noise(table_of(scores))
    assert found["sd"].to_numpy()[:5] == pytest.approx(without["sd"].to_numpy(), rel=0.05)
    assert (found["df"].to_numpy()[:5] >= without["df"].to_numpy()).all()


def test_variances_that_differ_widely_say_nothing_of_another_backbone():
    scores = random_scores(np.random.default_rng(7), (2, 7, 2), noise=1.0)
    scale = 10.0 ** np.array([-3, -2, -1, 0, 0.5, 1, 0])[:, None]
    scores = 70 + scale * (scores - scores.mean(axis=2, keepdims=True))
    scores[:, 6, 1:] = np.nan
    table = table_of(scores)
    found = estimate_noise(table)
    assert found.at["b6", "source"] == "unknown"
    assert np.isnan(found.at["b6", "sd"])
    assert compare_with_best(table, found)["low"][12:].isna().all()
