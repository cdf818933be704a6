"""`bocb preflight` with GPUs that the CPU stands in for: verdicts, settings, the table."""

import dataclasses
import json
import subprocess
import sys

import pytest

from bocb_jax import paper
from bocb_jax.errors import UserError
from bocb_jax.preflight import __main__ as preflight
from bocb_jax.preflight.check import compile_run
from bocb_jax.roofline import chips
from bocb_jax.roofline.topology import open_topology

SMALL = ["--dataset", "digits", "--opt", "adamw", "--batch-size", "64", "--step.clip-norm", "1"]


@pytest.fixture
def tiny_chip(monkeypatch):
    """A GPU of a megabyte or two."""

    def shrink(size):
        chip = dataclasses.replace(chips.CHIPS["h100"], memory=size)
        monkeypatch.setitem(chips.CHIPS, "h100", chip)

    return shrink


def test_a_run_that_fits(capsys):
    code = preflight.main(["--model", "vit_mini", "--topology", "h100:4", *SMALL])
    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith("vit_mini + adamw on h100:4 (4 chips), batch 64, bfloat16, ")
    assert "It fits. An estimate: compiled for CPUs" in out
    assert "all-reduce" in out
    assert "chip-hours" in out


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "pose"])
def test_other_tasks(task, capsys):
    assert preflight.main(["--task", task, "--topology", "h100:2", "--batch-size", "8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resnet_mini + ")
    assert "It fits." in out


def test_a_setting_that_fits_is_tried(capsys, tiny_chip):
    run = ["--model", "vit_mini", "--topology", "h100:1", "--opt", "sgd"]
    run += ["--dataset", "digits", "--batch-size", "1024"]
    assert preflight.main(run) == 0
    needed = float(capsys.readouterr().out.split("Memory")[1].split("GiB")[0]) * 2**30
    tiny_chip(0.7 * needed)
    assert preflight.main(run) == preflight.DOES_NOT_FIT
    out, said = capsys.readouterr()
    assert "It does not fit: it needs" in out
    assert "Trying --step.accumulate" in said
    assert "It fits." in out
    assert " --step.accumulate " in out


@pytest.mark.slow
def test_nothing_is_tried_if_not_asked(capsys, tiny_chip):
    tiny_chip(2**20)
    run = ["--model", "vit_mini", "--topology", "h100:1", "--no-search", *SMALL]
    assert preflight.main(run) == preflight.DOES_NOT_FIT
    out, said = capsys.readouterr()
    assert "It does not fit" in out
    assert "Trying" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vit_mini"], "--topology"),
        (["--topology", "h100:3", "--batch-size", "64"], "64, which cannot be divided evenly"),
        (["--topology", "h100:2", "--model", "nosuch"], "nosuch"),
        (["--topology", "h100:4", "--parallel.fsdp", "3"], "does not divide the 4 devices"),
        (["--topology", "v5e:4x4x", "--model", "vit_mini"], "topology"),
        (["--topology", "h100:2", "--jobs", "0"], "--jobs"),
    ],
)
def test_bad_settings_are_one_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        preflight.main([*arguments, "--dataset", "digits"])


@pytest.mark.slow
def test_the_table_is_written_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paper, "backbones", lambda: ["vit_mini", "mixer_mini"])
    table = tmp_path / "table.md"
    asked = ["--all", "--topology", "h100:2", "--table", str(table), *SMALL]
    assert preflight.main(asked) == 0
    assert "2/2" in capsys.readouterr().err
    text = table.read_text()
    assert text.count("\n| ") == 3
    assert "| vit_mini | " in text
    lines = table.with_suffix(".jsonl").read_text().splitlines()
    assert {json.loads(line)["backbone"] for line in lines} == {"vit_mini", "mixer_mini"}
    assert preflight.main(asked) == 0
    assert "vit_mini" not in capsys.readouterr().err  # nothing was compiled again
    assert table.read_text() == text


@pytest.mark.parametrize(("protocol", "images"), [("held_out", 1257), ("paper", 1527)])
def test_the_steps_are_those_of_the_protocol(protocol, images):
    run = ["--dataset", "digits", "--protocol", protocol, "--epochs", "10", "--batch-size", "64"]
    check = compile_run(preflight.run_config(run), open_topology("h100:1"))
    assert check.steps == 10 * (images // 64)


def test_only_the_devices_that_a_run_uses_are_compiled_for():
    run = ["--dataset", "digits", "--batch-size", "64", "--model", "vit_mini"]
    check = compile_run(
        preflight.run_config([*run, "--parallel.devices", "2"]), open_topology("h100:4")
    )
    assert check.topology.num_chips == 2
    with pytest.raises(UserError, match=r"parallel\.devices is 8, but h100:4 has 4 devices"):
        compile_run(preflight.run_config([*run, "--parallel.devices", "8"]), check.topology)


def test_a_data_set_that_is_not_here_counts_as_many_steps_as_the_real_one(tmp_path):
    run = ["--task", "detection", "--data", f"coco:{tmp_path / 'nowhere'}", "--batch-size", "16"]
    small = ["--transfer.short", "32", "32", "--transfer.long", "32", "--epochs", "12"]
    check = compile_run(preflight.run_config([*run, *small]), open_topology("h100:1"))
    assert check.steps == 12 * (117_266 // 16)


def test_a_run_alone_is_compiled_by_python_m(tmp_path):
    run = [
        sys.executable,
        "-m",
        "bocb_jax.preflight",
        "--topology",
        "h100:1",
        "--model",
        "vit_mini",
    ]
    done = subprocess.run([*run, *SMALL], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "It fits." in done.stdout
