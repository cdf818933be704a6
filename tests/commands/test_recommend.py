"""What to try first: from the paper and from own runs, for known and unknown backbones."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pandas
import pytest
from helpers import synthetic_runs
from helpers.score_tables import one_seed_table

from bocb_jax.__main__ import main as bocb
from bocb_jax.coupling import recommend
from bocb_jax.coupling.scores import from_published, from_results


@pytest.fixture(scope="module")
def paper():
    return from_published("cifar100")


# Best of the column and its tuned rates, read off Tables 1, A4 and A5 of the paper.
@pytest.mark.parametrize(
    ("model", "backbone", "optimizer", "rate", "decay"),
    [
        ("resnet50", "R-50", "AdaBelief", 5e-3, 5e-2),
        ("vit_s", "DeiT-S", "Adan", 2e-3, 5e-2),
        ("DeiT-S", "DeiT-S", "Adan", 2e-3, 5e-2),
    ],
)
def test_a_backbone_of_the_paper(paper, model, backbone, optimizer, rate, decay):
    advice = recommend.recommend(paper, model)
    first = advice.choices[0]
    assert (advice.backbone, advice.exact, first.optimizer) == (backbone, True, optimizer)
    assert (first.learning_rate, first.weight_decay) == (rate, decay)
    assert (first.behind, first.seeds, advice.candidates) == (0, 1, 20)


@pytest.mark.parametrize(
    ("model", "stands_in"),
    [
        ("resnet18", "R-50"),
        ("vit_mini", "DeiT-S"),
        ("convnextv2_mini", "CNXV2-T"),
        ("convnext_b", "CNX-T"),
        ("mobilenetv3_large", "MobV2"),
        ("mypkg:resnet_wide", "R-50"),
    ],
)
def test_a_relative_stands_in_and_that_is_said(paper, model, stands_in):
    advice = recommend.recommend(paper, model)
    assert (advice.backbone, advice.exact) == (stands_in, False)
    assert f"{stands_in} of the same family stands in" in advice.why


@pytest.mark.parametrize("model", ["my_own_net", "mypkg:MyNet", "123", "", "<b>"])
def test_without_relatives_all_backbones_speak(paper, model):
    advice = recommend.recommend(paper, model)
    assert advice.backbone is None
    # Mean regret over the 20 columns: Adan .65, LAMB .91, AdamP 1.53 are the three lowest.
    assert [choice.optimizer for choice in advice.choices] == ["Adan", "LAMB", "AdamP"]
    assert advice.choices[0].mean_regret == pytest.approx(0.65, abs=0.01)
    assert advice.choices[0].worst_backbone == "R-50"
    assert "all 20 backbones" in advice.why


def test_without_known_noise_the_plain_best_comes_first_and_that_is_said(paper):
    advice = recommend.recommend(paper, "resnet50")
    assert advice.noise is None
    assert "noise between seeds is not known" in advice.rule
    assert (advice.general, round(advice.price, 2)) == ("Adan", 3.45)
    assert any("it costs 3.45 points here" in line for line in recommend.sentences(advice))
    best = recommend.recommend(paper, "vit_s")
    assert any("it costs nothing here" in line for line in recommend.sentences(best))


def test_scores_within_the_noise_are_ordered_by_what_optimizers_do_elsewhere():
    names = ["sgd", "adamw", "lamb", "lion"]
    frame = synthetic_runs.results(list("abcdef"), names, rates=0, seeds=2)
    means = {"sgd": 0.70, "adamw": 0.72, "lamb": 0.71, "lion": 0.69}
    noise = np.random.default_rng(0).normal(0, 0.01, len(frame))
    frame["test_accuracy"] = frame["optimizer"].map(means) + noise
    # On one backbone sgd happens to come out on top, by less than the noise.
    on_a = frame["model"] == "a"
    frame.loc[on_a & (frame["optimizer"] == "sgd"), "test_accuracy"] += 0.025
    table = from_results(frame)
    assert table.matrix()["a"].idxmax() == "sgd"
    advice = recommend.recommend(table, "a")
    assert advice.choices[0].optimizer == "adamw"
    assert advice.noise == pytest.approx(1.0, rel=0.5)
    assert "drawn towards" in advice.rule
    # A lead far beyond the noise stays.
    frame.loc[on_a & (frame["optimizer"] == "sgd"), "test_accuracy"] += 0.1
    assert recommend.recommend(from_results(frame), "a").choices[0].optimizer == "sgd"


@pytest.mark.parametrize("tables", [30, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "sd", [1.0, 3.0, *(pytest.param(sd, marks=pytest.mark.slow) for sd in (0.3, 10.0))]
)
def test_true_regret_on_tables_drawn_around_the_papers(paper, sd, tables):
    truth = paper.goodness()
    lost = truth.max() - truth
    error = pandas.Series(sd**2, index=truth.index)
    rng = np.random.default_rng(0)
    saved = []  # against the plain best, on average over backbones
    for _ in range(tables):
        means = truth + sd * rng.standard_normal(truth.shape)
        costs = means.max() - means
        saved.append(
            np.mean(
                [
                    lost.at[costs[name].idxmin(), name]
                    - lost.at[recommend.shrink(costs, name, error, cap=8).idxmin(), name]
                    for name in truth
                ]
            )
        )
    # With 300 tables: 0.007, 0.040, 0.11 and 0.01, with errors of 0.0007, 0.004, 0.011 and 0.03.
    errors = np.mean(saved) / (np.std(saved, ddof=1) / tables**0.5)
    assert errors > (2 if sd < 10 else -2)


def test_large_noise_hides_no_gap_that_is_larger():
    names = ["sgd", "adamw", "lamb", "lion", "adagrad"]
    frame = synthetic_runs.results(list("abcde"), names, rates=0, seeds=3)
    # On a, seeds differ by 10 points; adamw, the best elsewhere, is 15 behind, the last 40.
    means = dict(zip(names, (0.40, 0.65, 0.79, 0.45, 0.80), strict=True))
    final = frame["phase"] == "final"
    on_a = final & (frame["model"] == "a")
    frame.loc[final, "test_accuracy"] = frame["optimizer"].map(
        dict(zip(names, (0.70, 0.80, 0.78, 0.72, 0.79), strict=True))
    )
    frame.loc[final, "test_accuracy"] += 0.005 * np.resize([-1, 0, 1], final.sum())
    frame.loc[on_a, "test_accuracy"] = frame["optimizer"].map(means)
    frame.loc[on_a, "test_accuracy"] += 0.1 * np.resize([-1, 0, 1], on_a.sum())
    advice = recommend.recommend(from_results(frame), "a")
    assert advice.noise == pytest.approx(10, rel=0.1)
    assert [choice.optimizer for choice in advice.choices[:2]] == ["adagrad", "lamb"]
    assert [words.split()[0] for words in advice.avoid][:2] == ["sgd", "lion"]


@pytest.mark.parametrize("most", [1, 20])
def test_no_choice_is_one_to_avoid(paper, most):
    for name in paper.backbones:
        advice = recommend.recommend(paper, name, most=most)
        avoided = {words.split()[0] for words in advice.avoid}
        assert advice.choices
        assert not avoided & {choice.optimizer for choice in advice.choices}


def test_failed_optimizers_are_named():
    frame = synthetic_runs.results(["a", "b"], ["sgd", "adamw", "lamb"], rates=0, failing={(0, 1)})
    advice = recommend.recommend(from_results(frame), "a")
    assert advice.avoid == ("adamw (no run finished)",)
    assert advice.choices[0].optimizer != "adamw"


def test_general_advice_that_diverged_is_said_to():
    table = one_seed_table([[90.0, 70, 70, 70], [0, 80, 80, 80], [88, 60, 60, 60]])
    lost = table.runs["score"] == 0
    runs = table.runs.assign(
        score=table.runs["score"].mask(lost), status=np.where(lost, "diverged", "finished")
    )
    advice = recommend.recommend(dataclasses.replace(table, runs=runs), "b0")
    assert (advice.general, advice.general_fails) == ("o1", True)
    assert any("families of backbones: it diverged here" in s for s in recommend.sentences(advice))


def test_an_optimizer_known_on_few_backbones_is_no_advice_for_all():
    table = one_seed_table([[80.0] * 5, [79.0] * 5, [81, np.nan, np.nan, np.nan, np.nan]])
    advice = recommend.recommend(table, "my_own_net")
    assert [choice.optimizer for choice in advice.choices] == ["o0", "o1"]
    assert recommend.choose_portfolio(table, 2).optimizers == ("o0", "o1")
    assert recommend.choose_portfolio(table, 3) is None


def test_one_optimizer_is_no_choice():
    frame = synthetic_runs.results(["a"], ["sgd"], rates=0, seeds=1)
    assert recommend.recommend(from_results(frame), "a") is None


def test_every_line_has_its_n(paper):
    for model in ("resnet50", "my_own_net"):
        lines = recommend.sentences(recommend.recommend(paper, model))
        assert any("n = " in line for line in lines)
        assert lines[-1].startswith("Source: Li et al.")


def test_door_answers_from_own_runs_first(tmp_path, capsys):
    path = tmp_path / "results.parquet"
    synthetic_runs.results(["resnet50", "vit_s"], ["sgd", "adamw"], rates=0).to_parquet(path)
    assert bocb(["recommend", "--model", "resnet50", "--runs", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.index("Your own runs") < out.index("The paper, CIFAR-100")
    assert "Try sgd first with learning rate" in out
    assert "bocb train --model resnet50 --opt adabelief --lr 0.005 --weight-decay 0.05" in out
    assert bocb(["recommend", "--model", "resnet50", "--runs", str(path), "--json"]) == 0
    own, published, imagenet = json.loads(capsys.readouterr().out)
    assert (imagenet["backbone"], imagenet["choices"][0]["optimizer"]) == ("R-50", "Adan")
    assert own["choices"][0]["seeds"] == 3
    assert published["backbone"] == "R-50"


def test_door_names_a_portfolio(capsys):
    assert bocb(["recommend", "--portfolio", "2", "--model", "resnet50"]) == 0
    out = capsys.readouterr().out
    assert "Try SGDP and Adan: over 20 backbones, the best of them is 0.22 points behind" in out
    assert "0.30 on average, 2.42 at worst" in out
    assert "On the backbone asked for: 1.28 with SGDP." in out
    assert bocb(["recommend", "--portfolio", "1", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["optimizers"], found["worst_backbone"], found["here"]) == (["Adan"], "R-50", None)


def test_door_answers_for_a_budget_of_trials(tmp_path, capsys):
    frame = synthetic_runs.results(["a", "b"], ["sgd", "adamw"], rates=3, seeds=1)
    # sgd reaches more with its best rate, and less with the others.
    search = (frame["phase"] == "search") & (frame["optimizer"] == "sgd")
    frame.loc[search & ~frame["selected"], "best_validation_accuracy"] = 0.2
    frame.loc[search & frame["selected"], "best_validation_accuracy"] = 0.9
    frame.to_parquet(tmp_path / "results.parquet")
    for trials, first in (("1", "adamw"), ("3", "sgd")):
        runs = str(tmp_path / "results.parquet")
        words = ["--model", "a", "--runs", runs, "--tuning-budget", trials]
        assert bocb(["recommend", *words]) == 0
        out = capsys.readouterr().out
        assert f"Try {first} first" in out
        assert f"expected best of {trials} trials" in out


@pytest.mark.parametrize("model", ["mypkg:MyNet", "repvgg_a0", "CNX-T", "vit_l"])
def test_door_answers_for_any_backbone_there_is(model, capsys):
    assert bocb(["recommend", "--model", model]) == 0
    assert "Try " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--runs", "/nowhere.parquet"], ["--most", "0"]])
def test_door_refuses_in_a_sentence(arguments, capsys):
    assert bocb(["recommend", "--model", "resnet50", *arguments]) == 2
    assert capsys.readouterr().err.strip().endswith(".")


def test_door_starts_no_jax():
    code = (
        "import sys; from bocb_jax.commands.recommend import main; main(['--model', 'resnet50']); "
    )
    code += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# -- fine-tuning -----------------------------------------------------------------------------------


def answers(capsys, *words):
    assert bocb(["recommend", *words]) == 0
    return capsys.readouterr().out


def test_fine_tuning_after_a_pre_training_of_the_paper(capsys):
    said = answers(
        capsys, "--task", "detection", "--pretrained-with", "lars", "--model", "resnet50"
    )
    assert "Try LAMB first." in said
    assert "Evidence: 37.5 on R-50, the best of 20 optimizers" in said
    assert "Without knowing that it was LARS one would take Adan, which costs 0.5 AP." in said
    assert "LARS itself ends 8.6 AP behind the best other one, LAMB." in said
    assert "bocb transfer --task detection --init WEIGHTS --model resnet50 --opt lamb" in said


@pytest.mark.parametrize("model", [[], ["--model", "swin_s"]])
def test_fine_tuning_for_pose_with_and_without_a_backbone(capsys, model):
    said = answers(capsys, "--task", "pose", "--pretrained-with", "adamw", *model)
    assert "72.8 on Swin-T" in said
    assert "what others would do is not known" in said


def test_an_optimizer_that_pre_trained_nothing_is_said(capsys):
    said = answers(
        capsys, "--task", "detection", "--pretrained-with", "muon", "--model", "resnet50", "--json"
    )
    (found,) = json.loads(said)
    assert found["pretrained_with"] is None
    assert found["lines"][0].startswith("No run here starts from weights of muon, so all stand in.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pretrained-with", "sgd", "--model", "resnet50"], "add --task detection or pose"),
        (["--task", "pose", "--portfolio", "2"], "leave it out"),
    ],
)
def test_fine_tuning_has_no_portfolio(words, said, capsys):
    assert bocb(["recommend", *words]) == 2
    assert said in capsys.readouterr().err
