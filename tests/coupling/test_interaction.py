"""The test of the interaction: against statsmodels, and its size where the noise is unequal."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import statsmodels.api
import statsmodels.formula.api
from helpers.score_tables import one_seed_table, random_scores, sweep_results, table_of

from bocb_jax.coupling import analyze
from bocb_jax.coupling.interaction import interaction_test
from bocb_jax.coupling.scores import from_published, from_results

TABLES = 200  # of each noise pattern


def noise_of(pattern, shape):
    """Standard deviations of the cells: equal, or some far noisier."""
    noise = np.full(shape, 0.3)
    noisy = {"one cell": (1, 1), "two cells": ([1, 3], [1, 2]), "one backbone": np.s_[:, 1]}
    if pattern in noisy:
        noise[noisy[pattern]] *= 5 if pattern == "one backbone" else 10
    return noise


def rejected(pattern, seeds, tables, shape=(6, 5), coupling=0.0):
    """In what share of tables the test finds an interaction at 5 percent."""
    rng = np.random.default_rng(seeds)
    noise = noise_of(pattern, shape)[..., None]
    found = 0
    for _ in range(tables):
        values = random_scores(rng, (*shape, 1), coupling, 0.0)
        values = values + noise * rng.standard_normal((*shape, seeds))
        found += interaction_test(table_of(values), resamples=300).p_value <= 0.05
    return found / tables


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("pattern", ["equal", "one cell", "two cells", "one backbone"])
def test_without_coupling_it_rejects_in_at_most_seven_percent(pattern, seeds):
    assert rejected(pattern, seeds, TABLES) <= 0.07


def test_one_noisy_cell_is_not_taken_for_coupling():
    # Of 60 tables, six are 2.2 standard deviations above the nominal share; pooling finds 15.
    assert rejected("one cell", 3, 60) <= 6 / 60


@pytest.mark.parametrize("pattern", ["equal", "one cell", "one backbone"])
def test_planted_coupling_is_found_under_any_noise(pattern):
    assert rejected(pattern, 5, 20, coupling=1.0) == 1


def test_equal_noise_gives_the_f_of_statsmodels():
    values = random_scores(np.random.default_rng(0), (4, 5, 3), interaction=1.0)
    values[0, 1, 2] = np.nan
    table = table_of(values)
    found = interaction_test(table)
    model = statsmodels.formula.api.ols(
        "score ~ C(optimizer) * C(backbone)", table.runs.dropna(subset="score")
    ).fit()
    expected = statsmodels.api.stats.anova_lm(model, typ=2).iloc[2]
    assert found.method == "F"
    assert found.degrees_of_freedom == (12, 39)
    assert (found.statistic, found.p_value) == pytest.approx((expected["F"], expected["PR(>F)"]))


def by_hand(table, draws, rng):
    """The bootstrap of Krishnamoorthy, Lu and Mathew, with a regression of statsmodels a draw."""
    runs = table.runs.dropna(subset="score")
    cells = runs.groupby(["optimizer", "backbone"])["score"].agg(["mean", "var", "count"])
    cells = cells[cells["count"] > 1].reset_index()

    def squares(means, variances):
        data = cells.assign(y=means)
        weights = cells["count"] / variances
        return statsmodels.formula.api.wls(
            "y ~ C(optimizer) + C(backbone)", data, weights=weights
        ).fit().ssr  # fmt: skip

    observed = squares(cells["mean"], cells["var"])
    degrees = cells["count"] - 1
    found = [
        squares(
            rng.standard_normal(len(cells)) * np.sqrt(cells["var"] / cells["count"]),
            cells["var"] * rng.chisquare(degrees) / degrees,
        )
        for _ in range(draws)
    ]
    return observed, np.mean(np.array(found) >= observed)


def test_the_bootstrap_agrees_with_one_by_regressions():
    # Gaps, a cell of one run and unequal counts; more backbones than optimizers.
    rng = np.random.default_rng(1)
    values = 70 + noise_of("one backbone", (4, 6))[..., None] * rng.standard_normal((4, 6, 4))
    values += 0.6 * rng.standard_normal((4, 6, 1))
    values[0, 0] = np.nan
    values[1, 1, 1:] = np.nan
    values[2, 3, 0] = np.nan
    table = table_of(values)
    found = interaction_test(table, resamples=2000)
    observed, p_value = by_hand(table, 300, rng)
    assert (found.method, found.cells, found.left_out) == ("parametric bootstrap", 22, 1)
    assert found.statistic * found.degrees_of_freedom[0] == pytest.approx(observed)
    # Four standard errors of 300 draws.
    assert found.p_value == pytest.approx(p_value, abs=4 * 0.5 / np.sqrt(300))
    assert "1 cell of one run is left out" in found.description
    turned = table.runs.rename(columns={"optimizer": "backbone", "backbone": "optimizer"})
    again = interaction_test(dataclasses.replace(table, runs=turned), resamples=50)
    assert again.statistic == pytest.approx(found.statistic)


def test_parts_that_no_cell_connects_have_their_own_levels():
    # Two tables of 3 x 3 in the corners of one of 6 x 6: squares add up.
    rng = np.random.default_rng(2)
    values = np.full((6, 6, 3), np.nan)
    for part in (slice(3), slice(3, 6)):
        noise = noise_of("one cell", (3, 3))[..., None]
        values[part, part] = rng.standard_normal((3, 3, 3)) * noise
    parts = [interaction_test(table_of(values[i : i + 3, i : i + 3])) for i in (0, 3)]
    whole = interaction_test(table_of(values))
    assert whole.degrees_of_freedom[0] == 8
    assert {part.method for part in (*parts, whole)} == {"parametric bootstrap"}
    assert whole.statistic * 8 == pytest.approx(sum(part.statistic * 4 for part in parts))


def test_equal_seeds_do_not_weigh_infinitely():
    rng = np.random.default_rng(3)
    values = 70 + rng.standard_normal((5, 4, 3)) * noise_of("one cell", (5, 4))[..., None]
    values[2, 2] = 70.1
    found = interaction_test(table_of(values))
    assert found.floored == 1
    assert "1 cell agree exactly" in found.description
    assert 0 < found.p_value <= 1
    # All seeds equal: the noise is not known, and nothing can be tested.
    assert interaction_test(table_of(np.repeat(values[..., :1], 3, axis=2))) is None


def test_given_noise_stands_in_for_seeds():
    # By hand: the interaction's sum of squares over that of the noise is chi-square.
    values = random_scores(np.random.default_rng(4), (4, 5, 1), 0.5, 0.0)[..., 0]
    table = dataclasses.replace(one_seed_table(values), noise=0.4)
    left = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    found = interaction_test(table)
    assert found.statistic == pytest.approx((left**2).sum() / 12 / 0.16)
    assert found.p_value == pytest.approx(scipy.stats.chi2.sf((left**2).sum() / 0.16, 12))
    spread = table.runs.assign(spread=np.linspace(0.2, 0.6, 20))
    model = statsmodels.formula.api.wls(
        "score ~ C(optimizer) + C(backbone)", spread, weights=spread["spread"] ** -2
    ).fit()
    found = interaction_test(dataclasses.replace(table, runs=spread))
    assert found.statistic == pytest.approx(model.ssr / 12)
    assert interaction_test(dataclasses.replace(table, noise=None)) is None


def test_published_table_with_a_noise_of_a_fifth_of_a_point():
    table = dataclasses.replace(from_published("cifar100"), noise=0.2)
    kept = table.select(optimizers=set(table.optimizers) - {"LARS", "AdaGrad"})
    found = interaction_test(kept)
    assert found.statistic == pytest.approx(158.1, abs=0.05)
    assert found.degrees_of_freedom == (323, np.inf)


def test_analysis_holds_the_test():
    table = from_results(sweep_results(ceiling=0.1))
    assert analyze(table, resamples=50).interaction == interaction_test(table, resamples=50)


@pytest.mark.slow
def test_ten_thousand_cells_are_tested_in_bounded_memory():
    rng = np.random.default_rng(5)
    values = rng.standard_normal((100, 100, 3)) * noise_of("one cell", (100, 100))[..., None]
    found = interaction_test(table_of(values))
    assert found.method == "parametric bootstrap"
    assert found.p_value > 0.001
    assert 99 <= found.draws < 2000
