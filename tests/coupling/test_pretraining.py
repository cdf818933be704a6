"""The optimizer of pre-training as a third factor: planted truths, and the paper's table."""

import dataclasses
import json

import numpy as np
import pandas
import pytest
from helpers import pretrained

from bocb_jax import paper
from bocb_jax.coupling import analyze, fine_tuning
from bocb_jax.coupling.pretraining import analyze_pretraining
from bocb_jax.coupling.replicates import (
    replicates_of,
    tables_by_backbone,
    with_pretraining,
    without_pretraining,
)
from bocb_jax.coupling.scores import from_published, from_results
from bocb_jax.coupling.starts import starts_test

TRUTHS = 100  # tables of each kind


def judged(kind, size, tables, **options):
    """Shares of tables with an interaction, with a gain of the same, and whose interval holds."""
    rng = np.random.default_rng(0)
    shown = helps = covered = 0
    for _ in range(tables):
        found = analyze_pretraining(pretrained.table(kind, size, rng, **options), resamples=199)
        shown += found.verdict == "yes"
        helps += found.helps == "yes"
        truth = size if kind == "same" else 0.0
        covered += found.match.low <= truth <= found.match.high
    return shown / tables, helps / tables, covered / tables


# Of 100 tables 5 +- 2.2 are expected: 11 and more have a probability of 1 percent.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "additive"])
@pytest.mark.parametrize("options", [{}, {"own_weights": False}, {"noisy": 6.0}], ids=str)
def test_without_an_effect_nothing_is_found(kind, options):
    shown, helps, covered = judged(kind, 0.0, TRUTHS, **options)
    assert shown <= 0.1
    assert helps <= 0.07  # one of two sides
    assert covered >= 0.89


@pytest.mark.slow
@pytest.mark.parametrize("own_weights", [True, False])
def test_the_same_optimizer_and_crossings_are_found(own_weights):
    shown, helps, covered = judged("same", 2.0, 40, own_weights=own_weights)
    assert min(shown, helps) >= 0.9
    assert covered >= 0.85
    shown, helps, _ = judged("crossing", 1.0, 40, own_weights=own_weights)
    assert shown >= 0.9
    assert helps <= 0.1  # a crossing is no gain of the same optimizer


def test_a_planted_gain_of_the_same_optimizer_is_found_and_sized():
    rng = np.random.default_rng(1)
    found = analyze_pretraining(pretrained.table("same", 3.0, rng), resamples=199)
    assert (found.verdict, found.helps) == ("yes", "yes")
    assert found.match.low < 3.0 < found.match.high
    assert found.by_starts.p_value < 0.01
    assert list(found.backbones["by"]) == ["starts", "starts"]
    assert list(found.backbones["starts"]) == [9, 9]
    assert (found.columns["gain_low"] <= found.columns["gain"]).all()
    assert (found.columns["gain"] <= found.columns["gain_high"]).all()


def test_main_effects_are_no_interaction():
    found = analyze_pretraining(pretrained.table("additive", 0, np.random.default_rng(2)))
    assert (found.verdict, found.helps) == ("not shown", "not shown")


def test_seeds_of_one_set_of_weights_tell_of_these_weights_only():
    drawn = pretrained.table("crossing", 2.0, np.random.default_rng(3), own_weights=False)
    found = analyze_pretraining(drawn, resamples=199)
    assert list(found.backbones["by"]) == ["seeds", "seeds"]
    assert found.verdict == "yes"
    assert found.by_starts is None


def exact_table(scores, starts=1, equal=1.0):
    """One backbone, scores without noise: optimizers a, b, c after pre-training with a, b."""
    rows = [
        (f"net (pre-trained with {pre})", "net", pre, f"{pre}{s}", fine, s, float(score))
        for pre, row in scores.items()
        for fine, score in row.items()
        for s in range(starts)
    ]
    names = ["backbone", "base_backbone", "pretrained_with", "start", "optimizer", "seed", "score"]
    frame = pandas.DataFrame(rows, columns=names).assign(status="finished", spread=np.nan)
    blank = pretrained.table("none", 0, np.random.default_rng(0), backbones=1)
    return dataclasses.replace(blank, runs=frame, equal=equal)


def test_quantities_by_hand():
    scores = {
        "sgd": {"sgd": 60.0, "adamw": 58.0, "lamb": 57.0},
        "adamw": {"sgd": 40.0, "adamw": 63.0, "lamb": 64.0},
    }
    found = analyze_pretraining(exact_table(scores))
    columns = found.columns.set_index("pretrained_with")
    assert columns["gain"].to_dict() == {"sgd": 2.0, "adamw": -1.0}
    assert columns["other"].to_dict() == {"sgd": "adamw", "adamw": "lamb"}
    # After sgd one takes what is best after adamw, lamb, 3 behind; after adamw sgd, 24 behind.
    assert columns["general"].to_dict() == {"sgd": "lamb", "adamw": "sgd"}
    assert columns["price"].to_dict() == {"sgd": 3.0, "adamw": 24.0}
    assert (found.gain.value, found.price.value) == (0.5, 13.5)
    best = found.transfers_best.loc["net"]
    assert (best["pretrained_with"], best["optimizer"], best["lead"]) == ("adamw", "lamb", 4.0)
    # Least squares of y ~ pre + fine + same, solved with statsmodels' formula by hand.
    y = np.array([60, 58, 57, 40, 63, 64.0])
    pre, fine = np.repeat([0, 1], 3), np.tile([0, 1, 2], 2)
    design = np.stack([np.ones(6), pre, fine == 1, fine == 2, pre == fine], axis=1).astype(float)
    assert found.match.value == pytest.approx(np.linalg.lstsq(design, y, rcond=None)[0][-1])
    assert found.verdict == "not known"
    assert np.isnan(found.gain.low)


def test_advice_that_diverged_is_no_measured_price():
    from bocb_jax.report.pretraining import sentences
    from bocb_jax.report.sections import pretraining

    scores = {
        "sgd": {"sgd": 60.0, "adamw": 58.0, "lamb": 57.0},
        "adamw": {"sgd": np.nan, "adamw": 63.0, "lamb": 64.0},
    }
    table = exact_table(scores)
    status = table.runs["status"].mask(table.runs["score"].isna(), "diverged")
    blank = dict.fromkeys(
        ("train_loss", "first_train_loss", "learning_rate", "weight_decay"), np.nan
    )
    table = dataclasses.replace(table, runs=table.runs.assign(status=status, **blank))
    analysis = analyze(table, resamples=20)
    found = analysis.pretraining
    columns = found.columns.set_index("pretrained_with")
    assert columns["general"].to_dict() == {"sgd": "lamb", "adamw": "sgd"}
    assert columns["fails"].to_dict() == {"sgd": False, "adamw": True}
    assert (found.price.value, found.price.cells) == (3.0, 1)
    (line,) = (line for line in sentences(analysis) if "without knowing" in line)
    assert "costs 3.0 AP on average, and 3.0 AP at worst (lamb after sgd)" in line
    assert line.endswith("; no run finishes with sgd after adamw.")
    rows = pretraining.build(analysis).blocks[1].rows
    assert [row["general"] for row in rows] == ["lamb", "sgd, which does not finish"]
    assert [row["price"] for row in rows] == [3.0, pytest.approx(np.nan, nan_ok=True)]
    advice = fine_tuning.advise(table, "net", "adamw")
    assert any("would take sgd, which does not finish." in line for line in advice.lines)


def test_a_lower_score_is_better_where_the_table_says_so():
    scores = {"sgd": {"sgd": 3.0, "adamw": 2.0}, "adamw": {"sgd": 5.0, "adamw": 1.0}}
    table = dataclasses.replace(exact_table(scores), higher_is_better=False)
    found = analyze_pretraining(table)
    assert found.columns["best"].tolist() == ["adamw", "adamw"]
    assert found.columns["gain"].tolist() == [-1.0, 4.0]
    assert found.transfers_best.loc["net", "score"] == 1.0


def test_tables_without_pre_training_have_no_third_factor():
    assert analyze_pretraining(from_published("cifar100")) is None
    one = exact_table({"sgd": {"sgd": 1.0, "adamw": 2.0}})
    assert analyze_pretraining(one) is None


def test_a_fine_tuning_that_diverged_costs_and_does_not_stop_the_analysis():
    drawn = pretrained.table("crossing", 2.0, np.random.default_rng(4))
    runs = drawn.runs.copy()
    lost = (runs["optimizer"] == "sgd") & (runs["pretrained_with"] == "adamw")
    runs.loc[lost, ["score", "status"]] = np.nan, "diverged"
    found = analyze_pretraining(dataclasses.replace(drawn, runs=runs), resamples=99)
    assert found.verdict == "yes"
    assert (found.cells["n"] == 0).sum() == 2


def test_the_statistic_of_starts_counts_every_way_to_name_them():
    drawn = pretrained.table("same", 5.0, np.random.default_rng(5), backbones=1)
    found = starts_test(tables_by_backbone(drawn))
    assert found.labelings == 280  # 9! / (3!)^3 / 3!
    assert found.p_value == pytest.approx(1 / 280)
    assert found.expected == pytest.approx(2 / 8)  # of 8 degrees of freedom between 9 starts


def test_weights_of_their_own_do_not_count_as_seeds():
    drawn = pretrained.table("none", 0, np.random.default_rng(6), backbones=1)
    (table,) = tables_by_backbone(drawn).values()
    repeated = replicates_of(table)
    means = repeated.within.runs.groupby(["backbone", "start"])["score"].mean()
    # Each start has the mean of its optimizer of pre-training: it adds nothing to all scores.
    assert means.groupby("backbone").std().to_numpy() == pytest.approx(0, abs=1e-9)
    assert repeated.within.matrix().to_numpy() == pytest.approx(table.matrix().to_numpy())


@pytest.mark.parametrize("name", ["vit_s", "vit_s (layer norm)", "my (odd, net)"])
def test_names_with_pre_training_can_be_undone(name):
    assert without_pretraining(with_pretraining(name, "lamb")) == name
    assert without_pretraining(name) == name


# -- the paper's table -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_paper():
    return analyze_pretraining(from_published("coco_box"))


def test_which_pre_trainings_the_paper_has(of_paper):
    (row,) = of_paper.backbones.itertuples()
    assert row.Index == "R-50"
    assert row.pretrained_with == ("SGD-M", "LARS", "LAMB", "Adan")
    assert (row.starts, row.optimizers, row.by) == (6, 20, "nothing")
    # On pose every backbone has one pre-training only.
    assert analyze_pretraining(from_published("coco_pose")) is None


def test_what_the_paper_shows_to_the_printed_digit(of_paper):
    columns = of_paper.columns.set_index("pretrained_with")
    table = paper.table("coco_box")
    lamb = table[["R50_A3", "R50_A2", "R50_A1"]].mean(axis=1)
    assert columns["best"].tolist() == ["Adan", "LAMB", "LAMB", "Adan"]
    assert columns["best_score"].tolist() == [37.7, 37.5, pytest.approx(lamb["LAMB"]), 39.4]
    assert columns["gain"].round(1).tolist() == [-1.1, -8.6, 0.2, 0.6]
    assert columns["price"].round(2).tolist() == [1.0, 0.5, 0.53, 0.8]
    assert columns["sgd_like"].round(1).tolist() == [1.1, 10.0, 9.4, 11.9]
    assert round(of_paper.gain.value, 2) == -2.22
    assert round(of_paper.price.value, 2) == 0.71
    best = of_paper.transfers_best.loc["R-50"]
    assert (best["pretrained_with"], best["optimizer"], best["score"]) == ("Adan", "Adan", 39.4)


def test_the_paper_has_no_noise_to_judge_its_interaction_by(of_paper):
    (row,) = of_paper.backbones.itertuples()
    assert (of_paper.verdict, of_paper.helps) == ("not known", "not shown")
    match = of_paper.match
    assert [round(end, 1) for end in (match.value, match.low, match.high)] == [1.2, -1.8, 4.2]
    assert row.interaction == pytest.approx(2.178, abs=1e-3)
    assert row.share == pytest.approx(0.274, abs=1e-3)
    # Of the 20 ways to choose three of six sets of weights as LAMB's, 5 make them as alike.
    assert (of_paper.by_starts.labelings, of_paper.by_starts.p_value) == (20, 0.25)


def test_the_interaction_by_hand(of_paper):
    table = paper.table("coco_box")
    grid = np.stack(
        [
            table["R50_SGD"],
            table["R50_LARS"],
            table[["R50_A3", "R50_A2", "R50_A1"]].mean(axis=1),
            table["R50_Adan"],
        ]
    )
    left = grid - grid.mean(axis=0) - grid.mean(axis=1, keepdims=True) + grid.mean()
    assert of_paper.backbones["interaction"].item() == pytest.approx(np.sqrt((left**2).mean()))


def test_a_given_noise_makes_the_interaction_of_the_paper_a_finding():
    quiet = dataclasses.replace(from_published("coco_box"), noise=0.2)
    found = analyze_pretraining(quiet)
    assert found.verdict == "yes"
    assert found.gain.low <= found.gain.value <= found.gain.high


# -- results of a sweep, and the report ------------------------------------------------------------


def results(drawn):
    runs = drawn.runs
    return pandas.DataFrame(
        {
            "model": runs["backbone"],
            "optimizer": runs["optimizer"],
            "seed": runs["seed"],
            "status": "finished",
            "phase": "final",
            "test_AP": runs["score"] / 100,
            "pretrained_with": runs["pretrained_with"],
            "config.init": runs["start"],
        }
    )


@pytest.mark.parametrize("plain", [False, True])
def test_results_say_what_each_run_started_from(plain):
    frame = results(pretrained.table("same", 3.0, np.random.default_rng(7)))
    if plain:  # labels without the pre-training, as of runs by hand
        frame["model"] = frame["model"].map(without_pretraining)
    table = from_results(frame)
    assert table.backbones[0] == "net0 (pre-trained with sgd)"
    found = analyze_pretraining(table, resamples=99)
    assert list(found.backbones.index) == ["net0", "net1"]
    assert list(found.backbones["starts"]) == [9, 9]


def test_runs_from_random_weights_stay_beside_the_others():
    frame = results(pretrained.table("same", 3.0, np.random.default_rng(8)))
    fresh = frame.head(6).assign(model="net0", pretrained_with=None)
    fresh["config.init"] = None
    fresh["optimizer"] = list(pretrained.FINE)
    table = from_results(pandas.concat([frame, fresh]))
    assert "net0" in table.backbones
    assert analyze_pretraining(table, resamples=99).backbones.index.tolist() == ["net0", "net1"]


def test_recipes_with_one_optimizer_are_weights_of_one_backbone():
    frame = results(pretrained.table("same", 3.0, np.random.default_rng(10), backbones=1))
    frame["model"] = [f"net (recipe {seed})" for seed in frame["seed"]]
    frame = frame.assign(**{"config.model": "net", "config.model_args": "{}"})
    found = analyze_pretraining(from_results(frame), resamples=99)
    assert found.backbones.loc["net", "starts"] == 9
    # With other arguments they are other nets.
    frame["config.model_args"] = [f"{seed}" for seed in frame["seed"]]
    found = analyze_pretraining(from_results(frame), resamples=99)
    assert found.backbones.index.tolist() == [f"net (recipe {seed})" for seed in range(3)]


def test_the_report_answers_and_its_record_is_json():
    from bocb_jax.report.pretraining import sentences
    from bocb_jax.report.sections import build_document

    table = from_results(results(pretrained.table("same", 3.0, np.random.default_rng(9))))
    analysis = analyze(table, confidence=0.9, resamples=50)
    first = sentences(analysis)[0]
    assert first.startswith("The optimizer of pre-training constrains that of fine-tuning")
    document = build_document(analysis)
    assert first in document.verdict
    (section,) = [one for one in document.sections if one.name == "pretraining"]
    assert len(section.blocks) == 4
    assert "Brackets: 90 %" in section.blocks[1].caption
    json.dumps(analysis.to_dict()["pretraining"], allow_nan=False)
