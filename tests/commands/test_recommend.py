"""What to try first: from the paper and from own runs, for known and unknown backbones."""

import json
import subprocess
import sys

import pytest
from helpers import synthetic_runs

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


def test_ties_go_to_what_costs_least_elsewhere():
    frame = synthetic_runs.results(["a", "b"], ["sgd", "adamw"], rates=0, seeds=1)
    scores = {("a", "sgd"): 0.700, ("a", "adamw"): 0.695, ("b", "sgd"): 0.5, ("b", "adamw"): 0.7}
    frame["test_accuracy"] = [scores[key] for key in zip(frame.model, frame.optimizer, strict=True)]
    table = from_results(frame)
    assert recommend.recommend(table, "a").choices[0].optimizer == "adamw"
    assert recommend.recommend(table, "a", tie=0.1).choices[0].optimizer == "sgd"
    assert "within 1 point of the best count as equal" in recommend.recommend(table, "a").rule


def test_failed_optimizers_are_named():
    frame = synthetic_runs.results(["a", "b"], ["sgd", "adamw", "lamb"], rates=0, failing={(0, 1)})
    advice = recommend.recommend(from_results(frame), "a")
    assert advice.avoid == ("adamw: no run finished",)
    assert advice.choices[0].optimizer != "adamw"


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
    own, published = json.loads(capsys.readouterr().out)
    assert own["choices"][0]["seeds"] == 3
    assert published["backbone"] == "R-50"


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
