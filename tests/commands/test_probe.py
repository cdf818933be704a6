"""A backbone's own check: the study that it runs, and the place among the published ones."""

import argparse
import subprocess
import sys

import pandas
import pytest
from helpers import synthetic_runs

from bocb_jax import paper
from bocb_jax.commands import probe
from bocb_jax.coupling.placement import place
from bocb_jax.errors import UserError


def test_a_published_backbone_is_nearest_to_itself():
    scores = paper.table("cifar100")
    names = {"sgd": "SGD-M", "adamw": "AdamW", "lamb": "LAMB", "lion": "LION"}
    for backbone in scores.columns:
        column = scores[backbone]
        own = pandas.Series({opt: column.max() - column[name] for opt, name in names.items()})
        found = place(own)
        assert found.index[0] == backbone
        assert found["distance"].iloc[0] == pytest.approx(0, abs=1e-9)


def test_distance_by_hand():
    # R-50, Table 1: SGD-M 78.76, AdamW 75.56, so the regrets among the two are 0 and 3.20.
    found = place(pandas.Series({"sgd": 0.0, "adamw": 1.2, "my_own": 9.0}))
    assert found.at["R-50", "adamw"] == pytest.approx(3.20)
    assert found.at["R-50", "distance"] == pytest.approx((2.0**2 / 2) ** 0.5)


def test_one_optimizer_places_nothing():
    assert place(pandas.Series({"sgd": 0.0})).empty


@pytest.mark.parametrize(("text", "found"), [("90s", 0.025), ("30m", 0.5), ("1.5h", 1.5)])
def test_budgets(text, found):
    assert probe.hours(text) == found


@pytest.mark.parametrize("text", ["", "30", "half an hour", "-5m", "0m"])
def test_bad_budgets_are_sentences(text):
    with pytest.raises(UserError, match="such as 90s, 30m or 2h"):
        probe.hours(text)


def test_study_begins_with_the_net():
    options = probe._parser().parse_args(["--model", "mypkg:MyNet"])
    assert isinstance(options, argparse.Namespace)
    study = probe.study_for(options)
    assert study.backbones == ("mypkg:MyNet", "resnet_mini", "vit_mini")
    assert study.optimizers == probe.OPTIMIZERS
    assert study.budget.device_hours == 0.5
    assert study.train["augment"] == {"only": True}


def test_what_it_says(tmp_path, capsys):
    frame = synthetic_runs.results(["my_net", "resnet_mini"], probe.OPTIMIZERS, rates=3, seeds=2)
    path = tmp_path / "results.parquet"
    frame.to_parquet(path)
    probe.report(path, "my_net")
    out = capsys.readouterr().out
    assert out.startswith("my_net: sgd or lamb (within ")
    assert "my_net, points behind its best:" in out
    assert "(n = 2)" in out
    assert "take it for a hint" in out
    with pytest.raises(UserError, match="larger --budget"):
        probe.report(path, "another")


def test_starts_no_jax():
    code = "import sys, bocb_jax.commands.probe as p"
    code += (
        "; p.study_for(p._parser().parse_args(['--model', 'x'])); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
