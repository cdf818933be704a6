"""A backbone's own check: the study that it runs, and the place among the published ones."""

import subprocess
import sys

import numpy as np
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


def options_of(*words):
    return probe._parser().parse_args(words)


def test_the_optimizers_are_the_portfolio_and_the_usual_ones():
    assert probe.optimizers() == ("sgd", "adamw", "sgdp", "adan")


def test_study_begins_with_the_net():
    study = probe.study_for(options_of("--model", "mypkg:MyNet"), 2, 0.5)
    assert study.backbones == ("mypkg:MyNet", "resnet_mini", "vit_mini")
    assert study.optimizers == probe.optimizers()
    assert study.budget.device_hours == 0.5
    assert study.train["augment"] == {"only": True}
    assert study.final.seeds == (1, 2)


def test_study_of_an_optimizer_puts_it_before_the_others_at_an_equal_budget():
    study = probe.study_for(options_of("--opt", "mypkg:my_opt", "--epochs", "3"), 3, 0.5)
    assert study.optimizers == ("mypkg:my_opt", *probe.optimizers())
    assert study.backbones == probe.BACKBONES
    assert study.train["epochs"] == 3
    assert study.search.lr_factors == (0.1, 1, 10)
    known = probe.study_for(options_of("--opt", "adamw"), 2, 0.5)
    assert known.optimizers == ("adamw", "sgd", "sgdp", "adan")


def saved(tmp_path, *args, **kwargs):
    path = tmp_path / "results.parquet"
    synthetic_runs.results(*args, **kwargs).to_parquet(path)
    return path


def test_what_it_says_of_a_backbone(tmp_path, capsys):
    path = saved(tmp_path, ["my_net", "resnet_mini"], probe.optimizers(), rates=3, seeds=2)
    probe.report(path, options_of("--model", "my_net"))
    out = capsys.readouterr().out
    assert out.startswith("my_net: ")
    assert "my_net, behind its best in points:" in out
    assert "(n = 2)" in out
    assert "take it for a hint" in out
    with pytest.raises(UserError, match="larger --budget"):
        probe.report(path, options_of("--model", "another"))


def test_what_it_says_of_an_optimizer(tmp_path, capsys):
    names = ["my:opt", *probe.optimizers()]
    path = saved(tmp_path, probe.BACKBONES, names, rates=3, seeds=3, failing=[(2, 0)])
    probe.report(path, options_of("--opt", "my:opt"), spent=True)
    out = capsys.readouterr().out
    # Even backbones prefer even optimizers by two points; on convnext_mini all its runs diverged.
    assert "helps on resnet_mini: 0.90 points ahead of adamw" in out
    assert "helps on vit_mini" in out
    assert "fails on repvgg_mini: 1.6 points behind sgd, the best of the others (1.2 to 2.0)" in out
    assert "fails on convnext_mini: no run finished." in out
    assert "As general advice for these 5 backbones my:opt costs" in out
    assert "The budget was spent" in out
    assert "Of two to try, " in out
    with pytest.raises(UserError, match="ended runs with 0 of 5 backbones"):
        probe.report(path, options_of("--opt", "your:opt"))


def test_unknown_noise_is_not_taken_for_noise_that_no_seeds_would_overcome(tmp_path, capsys):
    names = ["my:opt", *probe.optimizers()]
    path = saved(tmp_path, probe.BACKBONES, names, rates=3, seeds=1)
    probe.report(path, options_of("--opt", "my:opt"), spent=True)
    out = capsys.readouterr().out
    assert out.count("; the noise between seeds is not known, so nothing is decided.") == 5
    assert "would not decide" not in out


def test_an_optimizer_under_another_name_is_equal_over_all_backbones(tmp_path, capsys):
    frame = synthetic_runs.results(probe.BACKBONES, probe.optimizers(), rates=3, seeds=3)
    twin = frame[frame["optimizer"] == "adamw"].assign(optimizer="my:opt")
    path = tmp_path / "results.parquet"
    pandas.concat([frame, twin], ignore_index=True).to_parquet(path)
    probe.report(path, options_of("--opt", "my:opt"))
    out = capsys.readouterr().out
    assert "weighted by how sure each is, my:opt minus each of the others: " in out
    assert "adamw: equal (within 1 point), 0.00 (" in out


def test_more_seeds_are_asked_for_while_they_would_decide(tmp_path):
    names = ["my:opt", *probe.optimizers()]
    path = saved(tmp_path, probe.BACKBONES, names, rates=3, seeds=3)
    assert probe.decided(path, options_of("--opt", "my:opt"))
    frame = synthetic_runs.results(["my_net", "resnet_mini"], probe.optimizers(), seeds=2)
    final = frame["phase"] == "final"
    noise = np.random.default_rng(0).normal(0, 0.004, final.sum())
    frame.loc[final, "test_accuracy"] = frame.loc[final, "test_accuracy"].to_numpy(float) + noise
    frame.to_parquet(path)
    assert not probe.decided(path, options_of("--model", "my_net", "--seeds", "30"))
    assert probe.decided(path, options_of("--model", "my_net", "--seeds", "2"))


def test_all_rounds_of_seeds_share_the_budget(tmp_path, capsys, monkeypatch):
    """Two seeds and three rates take 9 minutes, of which another probe had taken 3."""
    rng, given = np.random.default_rng(0), []
    frame = synthetic_runs.results(["my_net", "resnet_mini"], probe.optimizers(), rates=3, seeds=5)
    final = frame["phase"] == "final"
    noise = rng.normal(0, 0.004, final.sum())
    frame.loc[final, "test_accuracy"] = frame.loc[final, "test_accuracy"].to_numpy(float) + noise
    frame["wall_seconds"] = 540 / (frame["seed"] < 2).sum()

    def sweep(study, workdir, workers):
        given.append(study.budget.device_hours)
        kept = ~final | (frame["seed"] < len(study.final.seeds))
        frame[kept].to_parquet(tmp_path / "results.parquet")
        return 0

    frame.head(1).assign(wall_seconds=180).to_parquet(tmp_path / "results.parquet")
    monkeypatch.setattr("bocb_jax.sweep.sweep", sweep)
    words = ("--model", "my_net", "--workdir", str(tmp_path / "results.parquet"))
    assert probe._run(options_of(*words, "--budget", "30m")) == 0
    assert given[0] == 0.5
    assert given[1] == pytest.approx(0.4)
    assert given == sorted(given, reverse=True)
    assert "The budget was spent" not in capsys.readouterr().out
    given.clear()
    frame.head(1).assign(wall_seconds=180).to_parquet(tmp_path / "results.parquet")
    assert probe._run(options_of(*words, "--budget", "5m")) == 0
    assert len(given) == 1
    assert "The budget was spent" in capsys.readouterr().out


def test_starts_no_jax():
    code = "import sys, bocb_jax.commands.probe as p"
    code += (
        "; p.study_for(p._parser().parse_args(['--model', 'x']), 2, 1)"
        "; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
