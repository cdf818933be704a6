"""Tables of known truth: what is said holds as often as it claims, and noise gets no word.

Each truth is a simulation of many tables; most take minutes and are marked slow.
"""

import dataclasses

import numpy as np
import pandas
import pytest
from helpers.score_tables import table_of

from bocb_jax.coupling import choice
from bocb_jax.coupling.best import compare_with_best
from bocb_jax.coupling.noise import estimate_noise

SIGMA = 0.3
TABLES = 200


def words_of(table):
    noise = estimate_noise(table)
    return choice.freedom(table, compare_with_best(table, noise), noise)["word"]


def drawn(rng, means, seeds, sigma=SIGMA):
    """A table of (optimizers, backbones) means with noise of a standard deviation, or several."""
    means = np.asarray(means, float)
    noise = (
        rng.standard_normal((*means.shape, seeds)) * np.broadcast_to(sigma, means.shape)[..., None]
    )
    return table_of(means[..., None] + noise)


def additive(rng, optimizers=8, backbones=6):
    """Means without coupling, in which no optimizer is far from the best."""
    return 80 + 0.3 * rng.uniform(-1, 1, (optimizers, 1)) + 3 * rng.standard_normal(backbones)


def patterns(shape):
    """Four patterns of noise over the cells, in units of SIGMA."""
    equal = np.ones(shape)
    one, two, backbone = equal.copy(), equal.copy(), equal.copy()
    one[0, 0] = 10
    two[0, 0] = two[1, 2] = 10
    backbone[:, 1] = 5
    return {"equal": equal, "one cell": one, "two cells": two, "one backbone": backbone}


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("pattern", list(patterns((8, 6))))
def test_without_coupling_no_backbone_is_called_bound(pattern, seeds):
    rng = np.random.default_rng(seeds)
    sigma = SIGMA * patterns((8, 6))[pattern]
    said = [
        (words_of(drawn(rng, additive(rng), seeds, sigma)) == "bound").any() for _ in range(TABLES)
    ]
    print(f"{pattern}, {seeds} seeds: {np.mean(said):.3f} of tables have a backbone called bound")
    assert np.mean(said) <= 0.05


@pytest.mark.slow
def test_the_words_of_precise_backbones_do_not_change_beside_a_noisy_one():
    rng = np.random.default_rng(7)
    changed = total = 0
    for _ in range(TABLES):
        means = 80 - rng.choice([0, 0.2, 4], (8, 6))
        precise = drawn(rng, means, 5)
        noisy = dataclasses.replace(precise, runs=precise.runs.copy())
        here = noisy.runs["backbone"] == "b5"
        noisy.runs.loc[here, "score"] += 5 * SIGMA * rng.standard_normal(here.sum())
        pair = [words_of(table).drop("b5") for table in (precise, noisy)]
        changed += (pair[0] != pair[1]).sum()
        total += 5
    print(f"{changed} of {total} words changed")
    assert changed <= 0.03 * total


@pytest.mark.slow
def test_where_sgd_alone_is_good_the_backbone_is_bound():
    rng = np.random.default_rng(8)
    said = []
    for _ in range(TABLES):
        means = np.full((8, 5), 80.0)
        means[1:, 0] -= 4
        said.append(words_of(drawn(rng, means, 3))["b0"] == "bound")
    print(f"bound in {np.mean(said):.3f}")
    assert np.mean(said) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 8])
def test_where_all_are_as_good_the_backbone_is_free(seeds):
    rng = np.random.default_rng(9)
    words = []
    for _ in range(TABLES):
        means = 80 - rng.uniform(0, 0.3, (8, 5))
        words += list(words_of(drawn(rng, means, seeds)))
    shares = pandas.Series(words).value_counts(normalize=True)
    print(f"{seeds} seeds: {shares.round(3).to_dict()}")
    assert shares["free"] >= 0.8
    assert "bound" not in shares


@pytest.mark.slow
@pytest.mark.parametrize("planted", [0, 1, 3])
def test_the_interval_of_the_price_covers_it(planted):
    rng = np.random.default_rng(10 + planted)
    families = pandas.Series(range(6), index=[f"b{i}" for i in range(6)])
    covered = []
    for _ in range(TABLES):
        # o0 leads by 2 everywhere but on b0, where another leads by what is planted.
        means = 80 + rng.standard_normal(6) - np.where(np.arange(8) > 0, 2, 0)[:, None]
        means[:, 0] = 80 - rng.uniform(planted, planted + 3, 8)
        means[0, 0] = 80 - planted
        means[1, 0] = 80.0 if planted else 79.9
        table = drawn(rng, means, 3)
        row = choice.price(table, families, estimate_noise(table), resamples=200).loc["b0"]
        covered.append(row["price_low"] - 1e-9 <= planted <= row["price_high"] + 1e-9)
    print(f"price {planted}: covered in {np.mean(covered):.3f}")
    assert np.mean(covered) >= 0.85


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_seeds_that_diverge_at_random_leave_no_gaps_in_what_is_said(share):
    rng = np.random.default_rng(11)
    for _ in range(8):
        table = drawn(rng, additive(rng), 3)
        lost = rng.random(len(table.runs)) < share
        runs = table.runs.assign(status=np.where(lost, "diverged", "finished"))
        table = dataclasses.replace(table, runs=runs.assign(score=runs["score"].mask(lost)))
        noise = estimate_noise(table)
        found = choice.freedom(table, compare_with_best(table, noise), noise)
        assert found[["freedom", "shown_within", "shown_beyond"]].notna().all().all()
        assert found["word"].notna().all()
        assert choice.costs_of(table).notna().all().all()
        reliable = choice.reliability(table)
        assert (reliable["low"] <= reliable["share"]).all()
        assert (reliable["share"] <= reliable["high"]).all()


def test_one_seed_of_noise_gets_no_word():
    rng = np.random.default_rng(12)
    assert words_of(drawn(rng, np.full((20, 20), 80.0), 1)).isna().all()
