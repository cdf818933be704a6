"""What a dry run says, and what stands in for data that are not there."""

import dataclasses
import io
import re
import sys

import pytest
from helpers import made_runs
from PIL import Image

from bocb_jax.data.synthetic import open_or_synthetic, synthetic_jpeg
from bocb_jax.errors import DatasetMissing, UserError
from bocb_jax.storage.remote import Workdir
from bocb_jax.study.estimate import estimate
from bocb_jax.study.messages import Request, Task
from bocb_jax.study.plan import Cell, Outcome
from bocb_jax.study.spec import Final, Search, Study
from bocb_jax.study.worker import Executor


@pytest.mark.parametrize(
    ("name", "classes", "sizes"),
    [
        ("cifar10", 10, (45_000, 5_000, 10_000)),
        ("cifar100", 100, (45_000, 5_000, 10_000)),
        ("imagenet2012", 1000, (1_271_167, 10_000, 50_000)),
    ],
)
def test_a_stand_in_is_as_large_as_the_real_one(tmp_path, name, classes, sizes):
    dataset, is_real = open_or_synthetic(name, data_dir=str(tmp_path))
    assert not is_real
    assert dataset.num_classes == classes
    assert tuple(map(len, dataset.splits.values())) == sizes
    joined = dataset.tuned_on_test()
    assert len(joined.splits["train"]) == sizes[0] + sizes[1]
    assert not list(tmp_path.iterdir())


def test_only_what_is_known_and_missing_has_a_stand_in(tmp_path):
    with pytest.raises(DatasetMissing, match="tfds:mnist' is not in"):
        open_or_synthetic("tfds:mnist", data_dir=str(tmp_path))
    dataset, is_real = open_or_synthetic("digits")
    assert is_real
    assert dataset.name == "digits"


def test_the_photograph_is_as_large_as_those_of_imagenet():
    assert Image.open(io.BytesIO(synthetic_jpeg())).size == (500, 375)
    # 147,897,477,120 bytes of training images.
    assert len(synthetic_jpeg()) == pytest.approx(147_897_477_120 / 1_281_167, rel=0.1)


def estimated(cells, outcomes):
    workdir = Workdir.at(cells[0].workdir)
    return estimate(cells[0].study, cells, outcomes, workdir, 2, quick=True)


def test_what_is_counted_is_what_is_left(tmp_path):
    study = Study(
        name="s", backbones=("a",), optimizers=("b",),
        search=Search(lr_factors=(0.1, 1)), final=Final(seeds=(1, 2)),
    )  # fmt: skip
    cells = made_runs.cells(study, tmp_path, 2, 3)
    said = estimated(cells, {})
    assert "6 pairs, 24 runs, 24 of them still to do" in said
    assert "Nothing was measured" in said
    # Of each pair 2 + 2 runs of 4 x 1200 images of 10,000 products, 6 operations each.
    assert f"About {6 * 4 * 4800 * 10_000 * 6:.1e} floating-point operations" in said
    # Two final runs a pair: the best weights, and two states of 3 x 1000 numbers.
    assert f"Up to {6 * 2 * 4 * 1000 * 7 / 1e9:.1g} GB" in said
    first = cells[0].planned({})[0]
    made_runs.finish(first, tmp_path, wall_seconds=48.5, seconds_to_first_step=0.5)
    said = estimated(cells, {first.run: Outcome("finished", 0.5)})
    assert "24 runs, 23 of them" in said
    # The runs of the first backbone, 12 but for one, of 48 s each.
    assert re.search(rf"About {11 * 48 / 3600:.2f} device-hours, 4:24 on the 2 workers", said)
    assert "left out of the hours: net1." in said


@pytest.mark.parametrize(
    ("checkpoint", "size"),  # two runs of 4 * 1e8 bytes, 1 + 3 * keep times
    [({}, "5.60"), ({"keep": 5}, "12.80"), ({"keep": 5, "discard": True}, "0")],
)
def test_disk_space_is_that_of_the_states_that_are_kept(tmp_path, checkpoint, size):
    study = Study(name="s", backbones=("a",), optimizers=("b",), final=Final(seeds=(1, 2)))
    (cell,) = made_runs.cells(study, tmp_path, 1, 1)
    pair = dataclasses.replace(cell.pair, train={"checkpoint": checkpoint}, num_params=10**8)
    said = estimated([Cell(pair, study, tmp_path)], {})
    assert f"Up to {size} GB" in said


def test_workers_that_cannot_start_end_a_measurement(tmp_path, monkeypatch):
    script = tmp_path / "worker"
    script.write_text("#!/bin/sh\nexit 7\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    study = Study(name="s", backbones=("a",), optimizers=("b",))
    cells = made_runs.cells(study, tmp_path, 2, 1)
    with pytest.raises(UserError, match=r"No worker could start\. .* exit code 7\..*\.workers"):
        estimate(study, cells, {}, Workdir.at(tmp_path), 2)


def test_a_study_without_a_search_counts_its_final_runs_alone(tmp_path):
    study = Study(
        name="s", backbones=("a",), optimizers=("b",),
        search=Search(kind="published"), final=Final(seeds=(0, 1, 2)),
    )  # fmt: skip
    (cell,) = made_runs.cells(study, tmp_path, 1, 1)
    assert cell.size == len(cell.planned({})) == 3


@pytest.mark.slow
def test_a_backbone_is_measured_on_the_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr("bocb_jax.engine.compile_cache.use_compile_cache", lambda folder: None)
    settings = {
        "model": "vit_mini", "opt": "sgd", "lr": 0.1, "weight_decay": 0.0, "batch_size": 2048,
        "dataset": "imagenet2012", "image_size": 32, "data": {"dir": str(tmp_path)},
        "parallel": {"devices": 1}, "model_args": {"depth": 1, "width": 16, "heads": 2},
    }  # fmt: skip
    found = Executor().answer(Request(Task.MEASURE, [settings]))
    assert found.error is None
    assert 0 < found.seconds_per_image < 1
    found = Executor().answer(Request(Task.MEASURE, [{**settings, "image_size": 33}]))
    assert "cannot be cut into patches" in found.error


def test_short_runs_of_successive_halving_count_as_they_are_long(tmp_path):
    search = Search(lr_factors=(0.1, 1, 10, 100), halving=2, rungs=1)
    study = Study(name="s", backbones=("a",), optimizers=("b",), search=search)
    cells = made_runs.cells(study, tmp_path, 1, 1)  # four runs of half the epochs, 2 + 1 whole ones
    assert cells[0].lengths == [0.5] * 4 + [1] * 2
    said = estimated(cells, {})
    assert "7 runs, 7 of them still to do" in said
    assert f"About {5 * 4800 * 10_000 * 6:.1e} floating-point operations" in said
    first = cells[0].planned({})[0]
    made_runs.finish(first, tmp_path)
    said = estimated(cells, {first.run: Outcome("finished", 0.5)})
    assert f"About {4.5 * 4800 * 10_000 * 6:.1e} floating-point operations" in said
