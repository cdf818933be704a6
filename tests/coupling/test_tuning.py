"""Tuning: expected best, cost and ceiling, width of the search, distances."""

import itertools

import numpy as np
import pandas
import pytest
from helpers.score_tables import sweep_results

from bocb_jax.coupling import tuning
from bocb_jax.coupling.scores import from_results


def test_expected_best_by_enumeration():
    scores = np.array([3.0, 1.0, 4.0, 1.5, 5.0])
    expected = [
        np.mean([max(drawn) for drawn in itertools.combinations(scores, k)]) for k in range(1, 6)
    ]
    np.testing.assert_allclose(tuning.expected_best(scores), expected)


def test_expected_best_is_unbiased():
    # The best of 3 of ten thousand samples of 6 normal scores: 0.8463 is the textbook's mean.
    scores = np.random.default_rng(0).standard_normal((10_000, 6))
    assert tuning.expected_best(scores)[:, 2].mean() == pytest.approx(0.8463, abs=0.015)


def test_coupling_that_is_a_cost_of_tuning_and_one_that_is_a_ceiling():
    cost = tuning.budget(from_results(sweep_results()))
    assert cost.tuning_share > 0.5
    assert cost.verdict.startswith("Most of the coupling is a cost of tuning")
    assert cost.coupling.index.tolist() == [1, 2, 3, 4, 5]
    ceiling = tuning.budget(from_results(sweep_results(ceiling=0.1)))
    assert abs(ceiling.tuning_share) < 0.2
    assert ceiling.verdict.startswith("The coupling is a ceiling")


def test_fresh_seeds_show_the_optimism_of_the_search():
    # All settings are equally good: the best of five is 1.163 standard deviations too high.
    rng = np.random.default_rng(0)
    frame = sweep_results(seeds=20, backbones=[f"b{i}" for i in range(40)])
    frame["validation_accuracy"] = 0.7 + 0.002 * rng.standard_normal(len(frame))
    found = tuning.budget(from_results(frame))
    assert found.optimism == pytest.approx(0.2 * 1.163, abs=0.04)
    assert found.optimism_low < found.optimism < found.optimism_high
    assert found.optimism_cells == 120


def test_defaults_by_hand():
    made = from_results(sweep_results())
    found = tuning.budget(made).defaults.set_index(["backbone", "optimizer"])
    assert len(found) == 12
    # One pair by hand: the setting with the least mean loss on the other three backbones.
    own = made.trials[made.trials["optimizer"] == "sgd"]
    grid = own.pivot(index="learning_rate", columns="backbone", values="score")
    loss = (grid.max() - grid).drop(columns="swin_t").mean(axis=1)
    row = found.loc["swin_t", "sgd"]
    assert row["learning_rate"] == loss.idxmin()
    assert row["gap"] == pytest.approx(grid["swin_t"].max() - grid.loc[loss.idxmin(), "swin_t"])
    assert (found["gap"] >= 0).all()
    assert found["gap"].max() > 0.5


def test_width_counts_the_good_settings():
    frame = sweep_results()
    found = tuning.width(from_results(frame)).set_index(["backbone", "optimizer"])
    # One point is lost a factor of 10 ** sqrt(0.5) = 5.1 away; the grid's steps are about 3.
    row = found.loc["swin_t", "sgd"]
    assert (row["trials"], row["within"], row["best_learning_rate"]) == (5, 3, 1.0)
    assert row["learning_rate_factor"] == pytest.approx(10)
    assert not row["at_edge"]
    assert found.loc["vit_s", "sgd"]["at_edge"]


def test_distances_by_hand():
    settings = pandas.DataFrame(
        {
            "optimizer": "sgd",
            "backbone": list("abcde"),
            "learning_rate": [0.1, 0.1, 0.1, 1.0, 0.01],
            "weight_decay": [0.0, 1e-4, 0.0, 5e-4, 0.0],
        }
    )
    found = tuning.distances(settings)
    assert found.distances.loc["sgd"].tolist() == [0, 1, 0, 1 + 2, 1]
    assert found.modes.loc["sgd"].tolist() == [0.1, 0.0, 5]
    # With the searched grid known, a step over a value that never won counts.
    trials = settings.assign(learning_rate=[0.3] * 5)
    assert tuning.distances(settings, trials=trials).distances.loc["sgd", "d"] == 2 + 2
