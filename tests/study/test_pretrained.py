"""Studies whose runs start from the runs of another study."""

import dataclasses
from pathlib import Path

import pytest
from helpers import made_runs
from helpers.studies import study

from bocb_jax import results
from bocb_jax.errors import UserError
from bocb_jax.run_files import optimizer_of
from bocb_jax.study.plan import Cell, Outcome
from bocb_jax.study.pretrained import find_weights
from bocb_jax.study.resolve import find_pairs
from bocb_jax.study.spec import Final, Pretrained, Search, Study


@pytest.fixture
def folder(tmp_path):
    """Final runs of vit_mini with sgd and adamw, of two seeds each, and a trial."""
    done = tmp_path / "pretraining"
    spec = study(final=Final(seeds=(3, 1)), search=Search(kind="default"))
    for optimizer in ("sgd", "adamw"):
        cell = Cell(made_runs.pair("vit_mini", optimizer), spec, done)
        for planned in cell.planned({}):
            made_runs.finish(planned, done)
    trials = Cell(made_runs.pair("vit_mini", "lamb"), study(), done)
    made_runs.finish(trials.planned({})[0], done)
    return done


def test_each_optimizer_of_the_folder_gives_its_final_runs_by_seed(folder):
    found = find_weights(Pretrained(runs=str(folder)), "vit_mini", ())
    assert [weights.optimizer for weights in found] == ["adamw", "sgd"]
    for weights in found:
        assert [results._row(Path(one), None)["seed"] for one in weights.inits] == [1, 3]
        assert {optimizer_of(one) for one in weights.inits} == {weights.optimizer}


@pytest.mark.parametrize(
    ("backbone", "optimizers", "said"),
    [
        ("vit_mini", ("sgd", "lamb"), "no finished final run of vit_mini with lamb"),
        ("resnet_mini", (), "no finished final run of resnet_mini to start from"),
    ],
)
def test_what_is_not_there_is_said(folder, backbone, optimizers, said):
    with pytest.raises(UserError, match=said):
        find_weights(Pretrained(runs=str(folder)), backbone, optimizers)


def test_a_folder_that_is_not_there_yet_can_be_planned_with(tmp_path):
    given = Pretrained(runs=str(tmp_path / "later"))
    with pytest.raises(UserError, match="no such folder"):
        find_weights(given, "vit_mini", ("sgd",))
    with pytest.raises(UserError, match="no such folder"):
        find_weights(given, "vit_mini", (), stand_in=True)
    (found,) = find_weights(given, "vit_mini", ("sgd",), stand_in=True)
    assert found.optimizer == "sgd"


def test_seeds_start_from_weights_of_their_own_in_turn(folder):
    spec = study(final=Final(seeds=(0, 1, 2)), search=Search(lr=(0.1,)))
    given = Pretrained(runs=str(folder))
    (weights, _) = find_weights(given, "vit_mini", ())
    pair = dataclasses.replace(
        made_runs.pair("vit_mini", "adam", "pre-trained with adamw"),
        train={"init": weights.inits[0], "pretrained_with": "adamw"},
        inits=weights.inits,
    )
    cell = Cell(pair, spec, "runs")
    (trial,) = cell.planned({})
    assert trial.config["init"] == weights.inits[0]
    *_, first, second, third = cell.planned({trial.run: Outcome("finished", 0.5, 0.5)})
    first, second = [p.config["init"] for p in (first, second)]
    assert [first, second, third.config["init"]] == [*weights.inits, weights.inits[0]]


def test_pairs_are_variants_by_the_optimizer_of_pre_training(folder):
    spec = Study(
        backbones=("vit_mini",),
        optimizers=("sgd",),
        train={"image_size": 16},
        pretrained=Pretrained(runs=str(folder), optimizers=("sgd", "adamw")),
    )
    pairs = find_pairs(spec)
    names = [pair.label for pair in pairs]
    assert names == ["vit_mini (pre-trained with sgd)", "vit_mini (pre-trained with adamw)"]
    assert [pair.train["pretrained_with"] for pair in pairs] == ["sgd", "adamw"]


def test_a_study_names_its_weights_once():
    with pytest.raises(UserError, match=r"left out where pretrained\.runs is given"):
        Study(
            backbones=("vit_mini",),
            optimizers=("sgd",),
            train={"init": "x"},
            pretrained=Pretrained(runs="y"),
        )


def test_what_is_no_run_has_no_optimizer(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"x")
    assert optimizer_of(str(tmp_path / "weights.pth")) is None
    assert optimizer_of(str(tmp_path)) is None
    assert optimizer_of(str(tmp_path / "none")) is None


def test_the_table_of_results_has_what_trained_the_weights(folder):
    import json

    assert "pretrained_with" not in results.read_runs(folder)
    path = sorted(folder.glob("*/config.json"))[0]
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"pretrained_with": "lamb"}))
    found = results.read_runs(folder).set_index("run")["pretrained_with"]
    assert found.dropna().to_dict() == {path.parent.name: "lamb"}
    path.write_text(json.dumps(stored | {"pretrained_with": 3}))
    with pytest.raises(UserError, match="pretrained_with"):
        results.read_runs(folder)
