"""Comparisons with the best: published quantiles, SciPy's range, coverage in simulation."""

import numpy as np
import pytest
from helpers.score_tables import table_of
from scipy import stats

from bocb_jax.coupling.best import (
    compare_with_best,
    dunnett_quantile,
    judge,
    range_quantile,
    regret_intervals,
)
from bocb_jax.coupling.noise import estimate_noise


@pytest.mark.parametrize(("comparisons", "df", "published"), [
    (1, 5, 2.02), (2, 5, 2.44), (5, 5, 2.98), (9, 5, 3.30), (1, 10, 1.81), (2, 10, 2.15),
    (5, 10, 2.56), (9, 10, 2.81), (2, np.inf, 1.92), (5, np.inf, 2.23), (9, np.inf, 2.42),
])  # fmt: skip
def test_dunnett_quantiles_are_those_of_his_table(comparisons, df, published):
    # Dunnett (1955), Table 1a: one-sided, joint confidence 95 percent.
    assert dunnett_quantile(0.95, comparisons, df, 0.5) == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize(("means", "df"), [(3, 10), (8, 14), (20, np.inf)])
def test_range_quantiles_are_scipys(means, df):
    expected = stats.studentized_range.ppf(0.95, means, df)
    assert range_quantile(0.95, means, df) == pytest.approx(expected, rel=1e-3)


def covered(rng, spread: float) -> bool:
    """Whether all intervals of one simulated backbone hold."""
    k, df = 6, 12
    true, n = rng.normal(0, spread, k), rng.integers(2, 6, k)
    means = true + 0.5 * rng.standard_normal(k) / np.sqrt(n)
    sd = 0.5 * np.sqrt(rng.chisquare(df) / df)
    low, high = regret_intervals(means, n.astype(float), sd, df, 0.95)
    regret = true.max() - true
    return bool(((low <= regret + 1e-12) & (regret <= high + 1e-12)).all())


@pytest.mark.parametrize("spread", [0, 0.3, 2])
def test_intervals_hold_together_as_often_as_they_say(spread):
    rng = np.random.default_rng(4)
    share = np.mean([covered(rng, spread) for _ in range(400)])
    assert share >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400)


def test_a_clear_best_has_no_regret_and_the_others_are_shown_behind():
    scores = np.array([80.0, 70, 79.9])[:, None, None] + np.array([-0.1, 0, 0.1])
    table = table_of(scores)
    found = compare_with_best(table, estimate_noise(table)).set_index("optimizer")
    assert found.loc["o1", "low"] > 9
    assert found.loc["o1", "verdict"] == "beyond"
    assert found.loc["o0", "low"] == 0
    assert found.loc["o0", "verdict"] == "within"
    assert found.loc["o2", "verdict"] == "within"


def test_less_confidence_gives_shorter_intervals_and_more_runs_too():
    means, n = np.array([3.0, 2, 1]), np.full(3, 3.0)
    wide = regret_intervals(means, n, 0.5, 6, 0.99)
    narrow = regret_intervals(means, n, 0.5, 6, 0.9)
    more = regret_intervals(means, 4 * n, 0.5, 6, 0.99)
    for other in (narrow, more):
        assert (other[0] >= wide[0]).all()
        assert (other[1] <= wide[1]).all()


def test_the_limit_is_within():
    assert judge(np.array([0.0]), np.array([1.0]), 1.0).tolist() == ["within"]
    assert judge(np.array([1.0]), np.array([2.0]), 1.0).tolist() == ["undecided"]
    assert judge(np.array([np.nan]), np.array([np.nan]), 1.0).tolist() == ["undecided"]


@pytest.mark.parametrize(("confidence", "df"), [(0.999, 1), (0.9999, 2), (0.9995, 3), (0.99, 1.5)])
def test_quantiles_reach_into_the_tails_of_few_degrees_of_freedom(confidence, df):
    expected = stats.t.ppf(confidence, df)
    assert dunnett_quantile(confidence, 1, df, 0.5) == pytest.approx(expected, rel=1e-3)
    # The range of two means is sqrt(2) times a two-sided t.
    expected = np.sqrt(2) * stats.t.ppf((1 + confidence) / 2, df)
    expected = expected if expected < 1000 else np.inf
    assert range_quantile(confidence, 2, df) == pytest.approx(expected, rel=1e-3)


def test_a_quantile_beyond_all_use_is_infinite_and_shows_nothing():
    assert dunnett_quantile(0.9999, 5, 1, 0.5) == np.inf
    assert range_quantile(0.95, 3, 0.3) == np.inf
    low, high = regret_intervals(np.array([3.0, 2, 1]), np.full(3, 2.0), 0.5, 0.3, 0.999)
    assert (low == 0).all()
    assert (high == np.inf).all()


def test_without_noise_a_tie_at_the_top_leaves_the_others_behind():
    low, high = regret_intervals(np.array([80.0, 80, 78]), np.full(3, 2.0), 0.0, 3, 0.95)
    assert low.tolist() == [0, 0, 2]
    assert high.tolist() == [0, 0, 2]
