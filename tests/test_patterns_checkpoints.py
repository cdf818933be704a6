"""Many sets of weights at once, the command and its sentences."""

import json

import numpy as np
import pandas
import pytest
from safetensors.numpy import save_file

from bocb_jax.coupling import ridges
from bocb_jax.coupling.checkpoints import FIGURES, _check_same, analyze_checkpoints
from bocb_jax.errors import UserError
from bocb_jax.patterns import main


def make(path, seed=0):
    generator = np.random.default_rng(seed)
    shapes = {"conv1.weight": (24, 12, 3, 3), "fc.weight": (10, 64), "fc.bias": (10,)}
    save_file({n: generator.normal(size=s).astype("float32") for n, s in shapes.items()}, path)
    return path


def test_a_folder_of_files_is_one_tidy_table(tmp_path):
    for seed in range(3):
        make(tmp_path / f"{seed}.safetensors", seed)
    frame = analyze_checkpoints([tmp_path], jobs=1, progress=False)
    assert len(frame) == 6
    assert list(frame["layer"][:2]) == ["conv1", "fc"]
    assert {f"{name}_init" for name in FIGURES} <= set(frame)
    assert frame["l2_norm_init"].iloc[0] == pytest.approx(np.sqrt(24), rel=0.1)


def test_the_command_writes_a_table_and_a_picture(tmp_path, capsys):
    path = make(tmp_path / "a.safetensors")
    for name in ("a.csv", "a.parquet"):
        assert main([str(path), "--output", str(tmp_path / name)]) == 0
    assert len(pandas.read_csv(tmp_path / "a.csv")) == 2
    assert len(pandas.read_parquet(tmp_path / "a.parquet")) == 2
    assert main([str(path), "--plot", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").stat().st_size > 1000
    assert "conv1" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["missing", "empty", "no safetensors", "text", "suffix"])
def test_bad_input_is_one_sentence(tmp_path, capsys, kind):
    path = tmp_path / "runs"
    arguments = [str(path)]
    if kind == "empty":
        path.mkdir()
    elif kind == "no safetensors":
        arguments = [str(tmp_path / "x.safetensors")]
        (tmp_path / "x.safetensors").write_text("x")
    elif kind == "text":
        arguments = [str(tmp_path / "x.txt")]
        (tmp_path / "x.txt").write_text("x")
    elif kind == "suffix":
        arguments = [str(make(tmp_path / "x.safetensors")), "--output", str(tmp_path / "x.doc")]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert (tmp_path / "runs").name in said.err or "x." in said.err


def test_a_damaged_record_and_weights_of_another_model(tmp_path):
    (tmp_path / "run/checkpoints/best").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps([]))
    with pytest.raises(UserError):
        analyze_checkpoints([tmp_path], progress=False)
    rows = [[{"backbone": "net", "source": s, "layer": layer}] for s, layer in ("ax", "by")]
    with pytest.raises(UserError, match="b are of another model than those in a"):
        _check_same(rows)


def test_ridges_are_of_one_backbone(tmp_path):
    frame = analyze_checkpoints([make(tmp_path / "a.safetensors")], progress=False)
    frame = pandas.concat([frame.assign(backbone=b, optimizer="sgd") for b in ("x", "y")])
    with pytest.raises(UserError, match="x, y"):
        ridges.plot(frame, tmp_path / "a.png")
    ridges.plot(frame.assign(backbone="x"), tmp_path / "a.png", scores={"sgd": 90}, failed=["sgd"])
    assert (tmp_path / "a.png").exists()
