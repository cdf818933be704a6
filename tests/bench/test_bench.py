"""`bocb bench`: what it prints and writes."""

import json
import sys

import pytest

from bocb_jax.__main__ import main
from bocb_jax.bench import models
from bocb_jax.errors import UserError


def test_optimizers(tmp_path, capsys):
    file = tmp_path / "costs.json"
    arguments = ["--optimizers", "--only", "sgd*", "--on", "vit_mini", "--rounds", "2"]
    assert main(["bench", *arguments, "--steps", "2", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "Updates of vit_mini" in printed
    assert "sgdp" in printed
    record = json.loads(file.read_text())
    assert record["command"].startswith("bocb bench --optimizers --only 'sgd*' --on vit_mini")
    assert {"device", "load", "jax"} <= set(record)
    sgd, sgdp = record["rows"]
    assert (sgd["model"], sgd["name"], sgdp["name"]) == ("vit_mini", "sgd", "sgdp")
    assert sgd["state_bytes_per_parameter"] == pytest.approx(4, rel=1e-3)
    assert sgd["update_seconds"] > 0
    assert sgd["optax_ratio"] > 0
    assert sgdp["optax_ratio"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "--only", "adan", "lamp"], "There is no optimizer 'lamp'"),
        (["--optimizers", "--on", "vit"], "'vit'"),
    ],
)
def test_unknown_names_are_a_sentence(arguments, message, capsys):
    assert main(["bench", *arguments, "--rounds", "0"]) == 2
    assert message in capsys.readouterr().err


def test_models(tmp_path, capsys):
    file = tmp_path / "models.json"
    arguments = ["--models", "--only", "vgg_mini", "--image-size", "32", "--rounds", "0"]
    assert main(["bench", *arguments, "--json", str(file)]) == 0
    assert "vgg_mini" in capsys.readouterr().out
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["name"], row["image_size"], row["images_per_second"]) == ("vgg_mini", 32, None)
    assert row["compile_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "pose"])
def test_models_of_a_task(task, tmp_path, capsys):
    file = tmp_path / "models.json"
    backbone = "helpers.tiny_features:Net"
    arguments = ["--models", "--task", task, "--only", backbone, "--image-size", "64"]
    given = [*arguments, "--batch-size", "2", "--rounds", "0", "--json", str(file)]
    assert main(["bench", *given]) == 0
    assert f"A training step of {task} at 64 px, batch 2" in capsys.readouterr().out
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["name"], row["batch_size"], row["images_per_second"]) == (backbone, 2, None)
    assert row["compile_seconds"] > 0


def test_a_task_is_for_models(capsys):
    assert main(["bench", "--optimizers", "--task", "pose"]) == 2
    assert "--task is for --models" in capsys.readouterr().err


def test_a_reference_that_lacks_a_package_is_left_out_and_one_that_fails_is_told():
    start = "import json, sys, time\n"
    python = [sys.executable]
    with models.timed_reference(f"{start}import no_such_package", [], python) as block:
        assert block is None
    with models.timed_reference(f"{start}step = lambda: None", [], python) as block:
        assert block(2) >= 0
    failing = f"{start}def step():\n    raise RuntimeError('sizes differ')"
    with (
        pytest.raises(UserError, match=r"comparison failed: .*RuntimeError: sizes differ"),
        models.timed_reference(failing, [], python),
    ):
        pass
