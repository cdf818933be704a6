"""`bocb preflight` with GPUs that the CPU stands in for: verdicts, settings, the table."""

import concurrent.futures
import dataclasses
import json
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest

from bocb_jax import paper, sweep
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.errors import UserError
from bocb_jax.preflight import __main__ as preflight
from bocb_jax.preflight import check, many, study
from bocb_jax.roofline import chips
from bocb_jax.roofline.cost import StepCost
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
    assert "Gradients are summed over devices in bfloat16, in which the layers compute them" in out
    assert "chip-hours" in out


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "pose"])
def test_other_tasks(task, capsys):
    assert preflight.main(["--task", task, "--topology", "h100:2", "--batch-size", "8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resnet_mini + ")
    assert "It fits." in out


@pytest.mark.slow
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
    assert {json.loads(line)["name"] for line in lines} == {"vit_mini", "mixer_mini"}
    assert preflight.main(asked) == 0
    assert "vit_mini" not in capsys.readouterr().err  # nothing was compiled again
    assert table.read_text() == text


@pytest.fixture
def uncompiled(monkeypatch):
    """Steps are traced, not compiled."""

    def compile_step(step, state, batch, key, topology):
        return StepCost(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, ())

    monkeypatch.setattr(check, "compile_step", compile_step)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("protocol", "images"),
    [
        ("held_out", 1257),
        pytest.param("paper", 1527, marks=pytest.mark.slow),
    ],
)
def test_the_steps_are_those_of_the_protocol(protocol, images):
    run = ["--dataset", "digits", "--protocol", protocol, "--epochs", "10", "--batch-size", "64"]
    found = check.compile_run(preflight.run_config(run), open_topology("h100:1"))
    assert found.steps == 10 * (images // 64)


@pytest.mark.usefixtures("uncompiled")
def test_only_the_devices_that_a_run_uses_are_compiled_for():
    run = ["--dataset", "digits", "--batch-size", "64", "--model", "vit_mini"]
    found = check.compile_run(
        preflight.run_config([*run, "--parallel.devices", "2"]), open_topology("h100:4")
    )
    assert found.topology.num_chips == 2
    with pytest.raises(UserError, match=r"parallel\.devices is 8, but h100:4 has 4 devices"):
        check.compile_run(
            preflight.run_config([*run, "--parallel.devices", "8"]), open_topology("h100:4")
        )


@pytest.mark.usefixtures("uncompiled")
def test_a_data_set_that_is_not_here_counts_as_many_steps_as_the_real_one(tmp_path):
    run = ["--task", "detection", "--data", f"coco:{tmp_path / 'nowhere'}", "--batch-size", "16"]
    small = ["--transfer.short", "32", "32", "--transfer.long", "32", "--epochs", "12"]
    found = check.compile_run(preflight.run_config([*run, *small]), open_topology("h100:1"))
    assert found.steps == 12 * (117_266 // 16)


def test_a_detector_is_compiled_for_its_largest_images(monkeypatch):
    seen = []

    def compile_step(step, state, batch, key, topology):
        seen.append(batch["image"].shape)
        return StepCost(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, ())

    monkeypatch.setattr(check, "compile_step", compile_step)
    run = ["--task", "detection", "--batch-size", "4", "--transfer.short", "32", "32"]
    run += ["--transfer.long", "128", "--transfer.shapes", "4"]
    check.compile_run(preflight.run_config(run), open_topology("h100:1"))
    assert seen == [(4, 128, 32, 3)]


def test_python_m_starts_it():
    run = [sys.executable, "-m", "bocb_jax.preflight", "--topology", "v5e:nowhere"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "There is no topology" in done.stderr


# --- A study ------------------------------------------------------------------------------------


STUDY = """
backbones = ["vit_mini", "mixer_mini"]
optimizers = ["adam", "sgd", "adamw", "lamb"]
opt_args.sgd = { momentum = 0.5 }

[train]
dataset = "digits"
epochs = 8
batch_size = 64
image_size = 16

[search]
lr_factors = [0.1, 1, 10, 100]
halving = 2
rungs = 1

[final]
seeds = [1, 2]
"""


PLAIN = STUDY.replace("opt_args.sgd = { momentum = 0.5 }\n", "")


def pretended(monkeypatch, row):
    """Every program costs `row`; returns the runs that were asked about."""
    asked = {}

    def check_each(runs, topology, *, on_rows, **options):
        asked.update(runs)
        rows = {name: row(config) for name, config in runs.items()}
        on_rows(rows)
        return rows

    monkeypatch.setattr(study, "check_each", check_each)
    return asked


def fits(config):
    hour = {"memory": 2.0**30, "least": 1.0, "bound": "memory", "hours": 2.0, "chip_hours": 4.0}
    return {"verdict": many.FITS, "flags": "", **hour}


def swept(tmp_path, monkeypatch, *options, text=STUDY):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(text)
    return sweep.main([str(path), "--preflight", "h100:2", *options])


def test_optimizers_that_need_the_same_are_compiled_once(tmp_path, monkeypatch, capsys):
    asked = pretended(monkeypatch, fits)
    assert swept(tmp_path, monkeypatch) == 0
    out, said = capsys.readouterr()
    # Adam and AdamW have two moments and element-wise updates; SGD has an argument of its own.
    assert list(asked) == [
        f"{backbone} + {pair}"
        for backbone in ("vit_mini", "mixer_mini")
        for pair in ("adam and 1 like it", "sgd", "lamb")
    ]
    assert {config.epochs for config in asked.values()} == {8}
    assert "small: 8 pairs, 6 programs to compile for h100:2" in said
    # Of each pair four runs of half the epochs, two whole ones of the search, two final ones.
    hours = 8 * 4.0 * (4 * 0.5 + 2)
    assert f"64 runs take at least {study.hours_text((hours + 64) / 2)}" in out
    assert f"{hours + 64:,.1f} chip-hours: {hours:,.0f} for the search, 64 for the final" in out
    assert out.rstrip().endswith("All pairs fit.")
    table = (tmp_path / "preflight-small.md").read_text()
    assert "| vit_mini | adam, adamw | 1.00 | 1,000 | memory | 2 | 16 | 48.0 | fits |" in table
    assert not (tmp_path / "runs").exists()


def test_pairs_that_do_not_fit_are_named_with_what_does(tmp_path, monkeypatch, capsys):
    def row(config):
        if config.model == "vit_mini":
            return fits(config)
        if config.opt == "lamb":
            return {"verdict": "It does not fit."}
        flags = "--step.accumulate 2"
        return {**fits(config), "flags": flags, "verdict": f"It does not fit. Fits with {flags}."}

    pretended(monkeypatch, row)
    assert swept(tmp_path, monkeypatch, "--budget.device-hours", "10") == 1
    out = capsys.readouterr().out
    assert "mixer_mini + adam, adamw: It does not fit. Fits with --step.accumulate 2." in out
    assert "Left out of the hours: mixer_mini + lamb." in out
    assert "That exceeds budget.device_hours, 10" in out
    assert "[[variants]]" in out


def test_variants_that_differ_in_their_weights_alone_share_a_program(tmp_path, monkeypatch):
    variants = "".join(
        f'[[variants]]\nname = "{name}"\ntrain = {{ init = "{name}.pth" }}\n' for name in "xy"
    )
    text = STUDY.replace("[train]", f"{variants}[[variants]]\nname = 'random'\n[train]", 1)
    asked = pretended(monkeypatch, fits)
    assert swept(tmp_path, monkeypatch, "--backbones", "vit_mini", text=text) == 0
    assert [name for name in asked if "lamb" in name] == [
        "vit_mini (x) + lamb and 1 like it",
        "vit_mini (random) + lamb",
    ]


@pytest.mark.slow
def test_a_study_is_compiled_and_what_was_compiled_is_kept(tmp_path, monkeypatch, capsys):
    two = ["--optimizers", "adam,adamw", "--backbones", "vit_mini"]
    assert swept(tmp_path, monkeypatch, *two, text=PLAIN) == 0
    out, said = capsys.readouterr()
    assert "1/1" in said
    assert "All pairs fit." in out
    rows = (tmp_path / "preflight-small.jsonl").read_text().splitlines()
    assert len(rows) == 1
    assert swept(tmp_path, monkeypatch, *two, text=PLAIN) == 0
    assert "1/1" not in capsys.readouterr().err


def test_a_study_of_settings_that_do_not_go_together_is_a_sentence(tmp_path, monkeypatch):
    one = ["--optimizers", "adam", "--backbones", "vit_mini", "--train.batch-size", "63"]
    with pytest.raises(UserError, match="63, which cannot be divided evenly among 2 devices"):
        swept(tmp_path, monkeypatch, *one, text=PLAIN)


def test_a_run_that_is_refused_is_a_row_of_the_table():
    config = from_dict(TrainConfig, {"model": "vit_mini", "batch_size": 63})
    row = many.row_of(many.to_dict(config), "h100:2", search=False)
    assert row["refused"]
    assert "cannot be divided" in row["verdict"]


def test_a_process_that_is_killed_is_a_sentence(tmp_path, monkeypatch):
    class Killed(concurrent.futures.ThreadPoolExecutor):
        def __init__(self, jobs, context):
            super().__init__(jobs)

        def submit(self, function, *args, **kwargs):
            future = concurrent.futures.Future()
            future.set_exception(BrokenProcessPool("a child was terminated abruptly"))
            return future

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Killed)
    with pytest.raises(UserError, match=r"killed, perhaps for want of memory.*fewer than 2"):
        many.check_each(
            {"a": TrainConfig()},
            "h100:1",
            kept=tmp_path / "kept.jsonl",
            jobs=2,
            search=False,
            on_rows=lambda rows: None,
        )
