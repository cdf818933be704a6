"""Tuning, ranking, labels of failures, and the whole analysis of tables with gaps."""

import dataclasses
import itertools
import json
import time

import numpy as np
import pandas
import pytest

import bocb_jax.coupling
from bocb_jax.coupling import analyze, failures, outliers, ranking, scores, tuning
from bocb_jax.errors import UserError


def study(seed=0, optimizers=("sgd", "adamw", "lamb"), backbones=("vit_s", "resnet50", "swin_t",
          "convnext_t"), seeds=3, rates=(0.1, 0.3, 1.0, 3.0, 10.0), ceiling=0.0):  # fmt: skip
    """Results of a sweep: the best learning rate differs by pair; `ceiling` stays after tuning."""
    rng = np.random.default_rng(seed)
    rows = []
    for (i, o), (j, b) in itertools.product(enumerate(optimizers), enumerate(backbones)):
        best = rates[(i + j) % len(rates)]
        top = 0.7 + 0.02 * j + ceiling * (-1) ** (i * j)
        shared = {"model": b, "optimizer": o, "status": "finished", "weight_decay": 0.05,
                  "num_classes": 100, "dataset": "cifar100", "first_train_loss": 4.0}  # fmt: skip
        for rate in rates:
            score = top - 0.02 * np.log10(rate / best) ** 2 + 0.002 * rng.standard_normal()
            rows.append(shared | {"phase": "search", "seed": 0, "learning_rate": rate,
                                  "validation_accuracy": score, "train_loss": 1.0})  # fmt: skip
        for s in range(1, seeds + 1):
            score = top + 0.002 * rng.standard_normal()
            rows.append(shared | {"phase": "final", "seed": s, "learning_rate": best,
                                  "validation_accuracy": score, "test_accuracy": score,
                                  "train_loss": 1.0, "wall_seconds": 60.0 * (i + 1),
                                  "seconds_to_target": 30.0 * (i + 1)})  # fmt: skip
    return pandas.DataFrame(rows)


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
    cost = tuning.budget(scores.from_results(study()))
    assert cost.tuning_share > 0.5
    assert cost.verdict.startswith("Most of the coupling is a cost of tuning")
    assert cost.coupling.index.tolist() == [1, 2, 3, 4, 5]
    ceiling = tuning.budget(scores.from_results(study(ceiling=0.1)))
    assert abs(ceiling.tuning_share) < 0.2
    assert ceiling.verdict.startswith("The coupling is a ceiling")


def test_fresh_seeds_show_what_the_search_promised_too_much():
    # All settings are equally good: the best of five is 1.163 standard deviations too high.
    rng = np.random.default_rng(0)
    frame = study(seeds=20, backbones=[f"b{i}" for i in range(40)])
    frame["validation_accuracy"] = 0.7 + 0.002 * rng.standard_normal(len(frame))
    found = tuning.budget(scores.from_results(frame))
    assert found.optimism == pytest.approx(0.2 * 1.163, abs=0.04)
    assert found.optimism_low < found.optimism < found.optimism_high
    assert found.optimism_cells == 120


def test_defaults_lose_what_the_curve_says():
    made = scores.from_results(study())
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
    frame = study()
    found = tuning.width(scores.from_results(frame)).set_index(["backbone", "optimizer"])
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


def scores_of(values, **columns):
    values = np.asarray(values, float)
    o, b = np.indices(values.shape)
    runs = pandas.DataFrame(
        {
            "optimizer": [f"o{i}" for i in o.ravel()],
            "backbone": [f"b{i}" for i in b.ravel()],
            "seed": 0,
            "score": values.ravel(),
            "status": "finished",
        }
        | {name: np.ravel(column) for name, column in columns.items()}
    )
    runs = scores._with_all_columns(runs)
    return scores.ScoreTable(runs, None, "test accuracy", "points", True, 1.0, "a test")


def test_profiles_by_hand():
    found = ranking.profile(scores_of([[80, 70], [79, 75], [60, 75]]))
    assert found.by_regret.loc[0.0].tolist() == [0.5, 0.5, 0.5]
    assert found.by_regret.loc[1.0].tolist() == [0.5, 1.0, 0.5]
    assert found.by_regret.loc[5.0].tolist() == [1.0, 1.0, 0.5]
    # The third optimizer is the best on one backbone and 20 points off on the other.
    assert found.scores.loc["o2", "regret"] == pytest.approx(0.5)
    assert found.scores.loc["o1", "regret"] == pytest.approx(0.95, abs=0.01)
    assert found.by_error_ratio.iloc[0].tolist() == [0.5, 0.5, 0.5]


def test_marks_by_hand():
    scores = scores_of([[70], [71], [72], [73], [66]])
    found = outliers.find_outliers(scores, "paper_marks(2)")
    # Median 71, MAD 1: the cut is 71 - max(2, 1.4826).
    assert found.cuts["b0"] == 69
    assert found.labels["b0"].tolist() == ["top4", "top4", "top4", "best", "outlier"]
    assert outliers.find_outliers(scores, "regret(1.5)").labels["b0"].tolist().count("outlier") == 3
    assert outliers.find_outliers(scores, "paper_eq1").cuts["b0"] == 73 - 2
    with pytest.raises(
        UserError, match=r"no rule 'best' for outliers\. There are: paper_marks, paper_eq1"
    ):
        outliers.find_outliers(scores, "best")


def test_labels_of_failed_cells():
    losses = [[0.5, 0.5], [0.55, 0.5], [1.5, 0.5], [0.4, 0.5], [3.9, 0.5], [np.nan, 0.5]]
    scores = [[80, 80], [79, 80], [60, 80], [61, 80], [5, 80], [1, 80]]
    status = [["finished"] * 2] * 5 + [["diverged", "finished"]]
    made = scores_of(scores, train_loss=losses, status=status, first_train_loss=np.full((6, 2), 4))
    marked = outliers.find_outliers(made, "regret(2)")
    found = failures.label(made, marked, made.matrix().max() - made.matrix())
    assert found.set_index("optimizer")["label"].to_dict() == {
        "o2": "under-fitted", "o3": "over-fitted", "o4": "never left the start", "o5": "diverged",
    }  # fmt: skip
    assert found["regret"].is_monotonic_decreasing


def test_the_whole_analysis_of_a_sweep():
    found = analyze(scores.from_results(study(ceiling=0.1)), resamples=100)
    assert found.decomposition.permutation_p < 0.05
    assert found.decomposition.noise_std == pytest.approx(0.2, rel=0.4)
    assert found.backbones["strength"]["vit_s"] in ("moderate", "strong")
    assert found.backbones["sgd_minus_adamw_low"].notna().all()
    assert (found.backbones["coupling_rms_low"] <= found.backbones["coupling_rms"]).all()
    assert found.ranking["computation_rank"].to_dict() == {"sgd": 1, "adamw": 2, "lamb": 3}
    assert found.profiles.by_time_ratio.iloc[0]["sgd"] == 1
    assert found.against_best is not None
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rule"] == "paper_marks(2)"
    again = analyze(scores.from_results(study(ceiling=0.1)), resamples=100)
    assert again.to_dict() == found.to_dict()


def test_a_backbone_that_is_bound_does_not_bind_the_others():
    # Four indifferent backbones, and one that loses 40 points with one optimizer.
    scores = np.array([[99.0, 98.5, 97.8, 99.2, 80.0]] * 4) + np.arange(4)[:, None] / 10
    scores[0, 4] -= 40
    found = analyze(scores_of(scores), resamples=10).backbones["strength"]
    assert found.tolist() == ["weak"] * 4 + ["strong"]


def test_losses_are_better_when_lower():
    made = scores_of([[2.0, 1.0], [1.0, 1.5], [1.2, 1.2]])
    made = dataclasses.replace(
        made, score="train loss", unit="nats", higher_is_better=False, chance=np.log(10)
    )
    found = analyze(made, resamples=10)
    assert found.backbones["best_optimizer"].tolist() == ["o1", "o0"]
    assert found.regret.loc["o0", "b0"] == 1.0
    assert (found.regret >= 0).all().all()


@pytest.mark.parametrize("values", [
    [[70.0]], [[70.0, 71, 72]], [[70.0], [71], [72]], [[70, 70], [70, 70.0]],
    [[70, np.nan, 3], [np.nan, 60, 4], [71, 61, np.nan]], [[70, np.nan], [71, np.nan]],
    np.where(np.eye(6) > 0, np.nan, 70 + np.arange(36.0).reshape(6, 6) % 7),
])  # fmt: skip
def test_small_and_gappy_tables_are_analysed_without_a_warning(values):
    found = analyze(scores_of(values), resamples=20)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.warnings


def test_what_cannot_be_asked():
    made = scores_of([[70, 71], [72, 73.0]])
    with pytest.raises(UserError, match="between 0 and 1"):
        analyze(made, confidence=95)
    with pytest.raises(UserError, match="at least 1"):
        analyze(made, resamples=0)
    with pytest.raises(UserError, match="no score in the table"):
        analyze(scores_of([[np.nan]]))
    assert bocb_jax.coupling.analyze is analyze


@pytest.mark.slow
def test_ten_thousand_runs_take_twenty_seconds():
    frame = study(
        optimizers=[f"o{i}" for i in range(20)], backbones=[f"b{i}" for i in range(20)], seeds=25
    )
    start = time.process_time()
    analyze(scores.from_results(frame))
    assert time.process_time() - start < 20
