"""`bocb bench`: what it prints and writes."""

import json
import sys

import pytest

from bocb_jax.__main__ import main
from bocb_jax.bench.data import measure_folder
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
def test_data(tmp_path, capsys):
    file = tmp_path / "data.json"
    assert main(["bench", "--data", "--rounds", "1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "DeiT recipe's augmentation, 224 px" in printed
    assert "outside it" in printed
    *speeds, pytorch, deit = json.loads(file.read_text())["rows"]
    said = [(row["of"], row["size"]) for row in speeds]
    assert said == [("augmentation", 32), ("augmentation", 224), ("folder", 224)]
    assert (pytorch["recipe"], deit["recipe"]) == ("pytorch", "deit")
    assert all(row["model_seconds"][0] > 0 for row in (pytorch, deit))


def rival(answer):
    """Stands in for an interpreter with PyTorch: at each line it is sent, it does `answer`."""
    script = f"import sys; print('ready', flush=True); [{answer} for _ in sys.stdin]"
    return [sys.executable, "-c", script]


def test_a_folder_is_read_in_turn_with_a_rival():
    python = rival("print(123, flush=True)")
    speed = measure_folder(rounds=2, images=8, batch=2, unseen=1, python=python)
    assert (speed.of, speed.size, speed.theirs) == ("folder", 224, [123, 123])
    assert len(speed.ours) == 2
    assert speed.ratio == pytest.approx(sum(speed.ours) / 2 / 123)


def test_a_rival_that_fails_is_a_sentence():
    with pytest.raises(UserError, match="side of the comparison failed: no posterize here"):
        measure_folder(
            rounds=1, images=4, batch=2, unseen=1, python=rival("sys.exit('no posterize here')")
        )


def test_without_a_rival_there_is_no_ratio():
    speed = measure_folder(rounds=1, images=4, batch=2, unseen=1, python=[sys.executable, "-c", ""])
    assert (len(speed.ours), speed.theirs, speed.ratio) == (1, [], None)
