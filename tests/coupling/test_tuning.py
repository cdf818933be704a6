"""Tuning: expected best, cost and ceiling, width of the search, distances."""

import dataclasses
import itertools

import numpy as np
import pandas
import pytest
from helpers.score_tables import random_scores, sweep_results, table_of

from bocb_jax.coupling import trials, tuning
from bocb_jax.coupling.scores import from_results


def test_expected_best_by_enumeration():
    scores = np.array([3.0, 1.0, 4.0, 1.5, 5.0])
    expected = [
        np.mean([max(drawn) for drawn in itertools.combinations(scores, k)]) for k in range(1, 6)
    ]
    np.testing.assert_allclose(trials.expected_best(scores), expected)


def test_expected_best_is_unbiased():
    # The best of 3 of ten thousand samples of 6 normal scores: 0.8463 is the textbook's mean.
    scores = np.random.default_rng(0).standard_normal((10_000, 6))
    assert trials.expected_best(scores)[:, 2].mean() == pytest.approx(0.8463, abs=0.015)


def test_a_diverged_trial_is_spent_and_gives_nothing():
    # By enumeration over the draws that hold a finished trial.
    scores = np.array([3.0, -np.inf, 4.0, -np.inf])
    expected = [
        np.mean([max(d) for d in itertools.combinations(scores, k) if np.isfinite(max(d))])
        for k in range(1, 5)
    ]
    np.testing.assert_allclose(trials.expected_best(scores), expected)
    assert np.isnan(trials.expected_best(np.full(3, -np.inf))).all()


def test_noise_of_the_best_of_k_of_normal_trials():
    # The variance of the maximum of 3 and 5 standard normal scores is 0.5595 and 0.4475.
    rng = np.random.default_rng(1)
    for n, variance in ((3, 0.5595), (5, 0.4475)):
        found = np.mean([
            trials.deviations(rng.standard_normal(n), None, 50, rng).var(axis=0)
            for _ in range(4000)
        ], axis=0)  # fmt: skip
        assert found[-1] == pytest.approx(variance, rel=0.1)
        assert found[0] == pytest.approx(1 / n, rel=0.1)


def study(rng, shape, count, noise=0.3, coupling=0.0, shared=False):
    """A search of `count` trials a pair without coupling of its own, and three fresh seeds."""
    mean = random_scores(rng, (*shape, 1), coupling, 0.0)
    rates = 10.0 ** np.arange(count) if shared else rng.random((*shape, count))
    loss = np.abs(np.arange(count) - count // 2) if shared else 0.0
    searched = mean - loss + noise * rng.standard_normal((*shape, count))
    fresh = table_of(mean + noise * rng.standard_normal((*shape, 3)))
    missing = {"learning_rate": 1.0, "weight_decay": 0.0, "validation_score": np.nan}
    found = table_of(searched).runs.assign(**missing)
    found["learning_rate"] = np.broadcast_to(rates, searched.shape).ravel()
    return dataclasses.replace(fresh, runs=fresh.runs.assign(**missing), trials=found)


@pytest.mark.parametrize(("tables", "kinds"), [
    pytest.param(200, [(s, n, g) for s in ((6, 5), (10, 8)) for n in (3, 4, 5) for g in (0, 1)],
                 marks=pytest.mark.slow),
    (20, [((6, 5), 3, False), ((6, 5), 5, True)]),
])  # fmt: skip
def test_noisy_trials_without_coupling_are_no_ceiling(tables, kinds):
    for shape, count, shared in kinds:
        rng = np.random.default_rng(count)
        found = [
            tuning.budget(study(rng, shape, count, shared=bool(shared))).fading.outcome
            for _ in range(tables)
        ]
        assert np.mean([outcome != "undecided" for outcome in found]) <= 0.05


def test_coupling_far_beyond_the_noise_is_a_ceiling():
    rng = np.random.default_rng(0)
    for shared in (False, True):
        made = study(rng, (8, 6), 5, coupling=2.0, shared=shared)
        assert tuning.budget(made).fading.outcome == "ceiling"


def test_a_sweep_that_is_not_finished_takes_the_pooled_noise():
    made = study(np.random.default_rng(4), (8, 6), 5, shared=True)
    runs = made.runs
    # No final runs of b5 yet, one of each pair of b2, b3 and b4: two backbones have seeds.
    few = runs["backbone"].isin(["b2", "b3", "b4"]) & (runs["seed"] > 0)
    made = dataclasses.replace(made, runs=runs[~(few | (runs["backbone"] == "b5"))])
    sd, degrees = trials.noise_of_trials(made)
    assert sd.index.tolist() == [f"b{i}" for i in range(6)]
    assert degrees == 2 * 8 * 2
    assert (sd[2:] == np.sqrt((sd[:2] ** 2).mean())).all()
    assert tuning.budget(made).fading.outcome == "undecided"
    agreeing = runs.assign(score=runs.groupby(["optimizer", "backbone"])["score"].transform("mean"))
    assert trials.noise_of_trials(dataclasses.replace(made, runs=agreeing.round(6))) is None


def test_best_at_a_number_of_trials():
    made = from_results(sweep_results())
    found = tuning.best_at(made, 2).set_index(["backbone", "optimizer"])
    own = made.trials[(made.trials["backbone"] == "vit_s") & (made.trials["optimizer"] == "sgd")]
    pairs = [max(pair) for pair in itertools.combinations(own["score"], 2)]
    row = found.loc["vit_s", "sgd"]
    assert row["expected_best"] == pytest.approx(np.mean(pairs))
    assert row[["trials", "n"]].tolist() == [2, 5]
    assert (tuning.best_at(made, 25)["trials"] == 5).all()
    assert tuning.best_at(dataclasses.replace(made, trials=None), 5) is None


def test_coupling_that_is_a_cost_of_tuning_and_one_that_is_a_ceiling():
    cost = tuning.budget(from_results(sweep_results()))
    assert cost.fading.outcome == "cost of tuning"
    assert cost.fading.share > cost.fading.low > 0.2
    assert cost.verdict.startswith("Most of the coupling is a cost of tuning")
    assert cost.coupling.index.tolist() == [1, 2, 3, 4, 5]
    ceiling = tuning.budget(from_results(sweep_results(ceiling=0.1)))
    assert ceiling.fading.outcome == "ceiling"
    assert abs(ceiling.fading.share) < 0.2
    assert ceiling.verdict.startswith("The coupling is a ceiling")


def test_fresh_seeds_show_the_optimism_of_the_search():
    # All settings are equally good: the best of five is 1.163 standard deviations too high.
    rng = np.random.default_rng(0)
    frame = sweep_results(seeds=20, backbones=[f"b{i}" for i in range(40)])
    frame["test_accuracy"] = frame["test_accuracy"].clip(upper=1)
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
