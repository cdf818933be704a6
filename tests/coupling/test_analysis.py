"""The whole analysis: of a sweep, of small tables and of tables with gaps."""

import dataclasses
import json

import numpy as np
import pytest
from helpers.score_tables import one_seed_table, sweep_results

import bocb_jax.coupling
from bocb_jax.coupling import analyze
from bocb_jax.coupling.scores import from_results
from bocb_jax.errors import UserError


def test_the_whole_analysis_of_a_sweep():
    found = analyze(from_results(sweep_results(ceiling=0.1)), resamples=100)
    assert found.decomposition.permutation_p < 0.05
    assert found.decomposition.noise_std == pytest.approx(0.2, rel=0.4)
    assert found.free["word"]["vit_s"] == "free"  # all three within a point
    assert found.stakes["beyond"]["resnet50"] == ("adamw",)
    assert found.backbones["sgd_minus_adamw_low"].notna().all()
    assert (found.backbones["coupling_rms_low"] <= found.backbones["coupling_rms"]).all()
    assert found.ranking["computation_rank"].to_dict() == {"sgd": 1, "adamw": 2, "lamb": 3}
    assert found.profiles.by_time_ratio.iloc[0]["sgd"] == 1
    assert found.against_best is not None
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rule"] == "paper_marks(2)"
    again = analyze(from_results(sweep_results(ceiling=0.1)), resamples=100)
    assert again.to_dict() == found.to_dict()


def test_one_bad_cell_says_nothing_about_the_other_backbones():
    # Four indifferent backbones, and one that loses 40 points with one optimizer.
    scores = np.array([[99.0, 98.5, 97.8, 99.2, 80.0]] * 4) + np.arange(4)[:, None] / 10
    scores[0, 4] -= 40
    found = analyze(one_seed_table(scores), resamples=10)
    assert found.stakes["beyond"].tolist() == [()] * 4 + [("o0",)]
    assert found.optimizers["beyond"].tolist() == [("b4",), (), (), ()]
    assert found.optimizers["within"]["o0"] == ("b0", "b1", "b2", "b3")
    assert found.free["freedom"].tolist() == [1.0] * 4 + [0.75]


def test_losses_are_better_when_lower():
    made = one_seed_table([[2.0, 1.0], [1.0, 1.5], [1.2, 1.2]])
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
    found = analyze(one_seed_table(values), resamples=20)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.warnings


def test_bad_arguments_are_refused():
    made = one_seed_table([[70, 71], [72, 73.0]])
    with pytest.raises(UserError, match="between 0 and 1"):
        analyze(made, confidence=95)
    with pytest.raises(UserError, match="at least 1"):
        analyze(made, resamples=0)
    with pytest.raises(UserError, match="no score in the table"):
        analyze(one_seed_table([[np.nan]]))
    assert bocb_jax.coupling.analyze is analyze


@pytest.mark.slow
def test_ten_thousand_runs():
    frame = sweep_results(
        optimizers=[f"o{i}" for i in range(20)], backbones=[f"b{i}" for i in range(20)], seeds=25
    )
    frame["test_accuracy"] = frame["test_accuracy"].clip(0, 1)
    assert analyze(from_results(frame)).decomposition.runs == 10_000
