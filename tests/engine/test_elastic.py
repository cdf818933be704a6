"""A run that goes on with other devices and processes takes the same steps."""

import shutil

import pytest
from drills import processes as drill

from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.storage.files import read_jsonl
from bocb_jax.train import main, train

# (devices, how many of them share one copy of the state)
LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 4), (8, 1), (8, 8)]
TOLERANCE = 1e-5  # of a loss near 2.3
WIDE = {"depth": 1, "width": 64, "heads": 2}  # arrays of 2**14 elements, which FSDP splits


def settings(tmp_path, compile_cache, devices=1, fsdp=1, **changes):
    return from_dict(TrainConfig, {
        "model": "vit_mini", "opt": "lamb", "model_args": WIDE, "image_size": 16, "epochs": 1,
        "batch_size": 64, "test": False, "augment": {"only": True, "flip": True, "mixup": 0.8},
        "parallel": {"devices": devices, "fsdp": fsdp}, "compile_cache": compile_cache,
        "checkpoint": {"every_steps": 9, "keep": 9}, "workdir": str(tmp_path), "run_id": "run",
        "log": {"every_steps": 1, "progress": "none"}, **changes,
    })  # fmt: skip


def losses(folder):
    return [line["loss"] for line in read_jsonl(folder / "metrics.jsonl")]


def back_to(step, folder):
    """Leave of an ended run what it had saved at a step."""
    (folder / "result.json").unlink()
    for kind in ("last", "best"):
        for later in (folder / "checkpoints" / kind).iterdir():
            if int(later.name) > step:
                shutil.rmtree(later)


@pytest.mark.slow
@pytest.mark.parametrize("first", LAYOUTS)
def test_every_layout_continues_every_other(tmp_path, compile_cache, first):
    undisturbed = settings(tmp_path / "one", compile_cache)
    begun = settings(tmp_path / "begun", compile_cache, *first)
    for config in (undisturbed, begun):
        train(config)
    expected = losses(undisturbed.folder())
    assert len(expected) == 19
    back_to(9, begun.folder())
    for layout in LAYOUTS:
        config = settings(tmp_path / "-".join(map(str, layout)), compile_cache, *layout)
        shutil.copytree(begun.folder(), config.folder())
        train(config)
        found = losses(config.folder())
        assert found[:9] == losses(begun.folder())[:9]
        assert found == pytest.approx(expected, rel=0, abs=TOLERANCE), layout
        starts = read_jsonl(config.folder() / "starts.jsonl")
        assert [(start["step"], start["devices"], start["fsdp"]) for start in starts] == [
            (0, *first),
            (9, *layout),
        ]


@pytest.mark.slow
def test_one_process_continues_two_and_the_reverse(tmp_path):
    options = ["--checkpoint.keep", "99"]
    runs = [tmp_path / "alone", tmp_path / "changing"]
    for workdir in runs:
        assert drill.wait(drill.start(workdir, tmp_path / "cache", 1, *options), 600) == [0]
    (folder,) = runs[1].glob("*/")
    for step, count in ((22, 2), (44, 1)):
        back_to(step, folder)
        started = drill.start(runs[1], tmp_path / "cache", count, *options)
        assert drill.wait(started, 600) == [0] * count
    expected = drill.losses(runs[0])
    assert drill.losses(runs[1]) == pytest.approx(expected, rel=0, abs=TOLERANCE)
    starts = read_jsonl(folder / "starts.jsonl")
    assert [(start["step"], start["processes"]) for start in starts] == [(0, 1), (22, 2), (44, 1)]


@pytest.mark.slow
def test_the_command_finds_the_run_that_was_begun_on_other_devices(tmp_path, compile_cache, capsys):
    begun = settings(tmp_path, compile_cache, run_id=None)
    train(begun)
    back_to(9, begun.folder())
    words = ["--model", "vit_mini", "--opt", "lamb", "--image-size", "16", "--epochs", "1"]
    for name, value in WIDE.items():
        words += [f"--model-args.{name}", str(value)]
    words += ["--batch-size", "64", "--augment.only", "--augment.flip", "True"]
    words += ["--augment.mixup", "0.8", "--workdir", str(tmp_path), "--no-test"]
    words += ["--parallel.devices", "2", "--parallel.fsdp", "2", "--log.progress", "lines"]
    assert main([*words, "--compile-cache", compile_cache, "--checkpoint.keep", "9"]) == 0
    assert [folder.name for folder in tmp_path.iterdir()] == [begun.folder().name]
    assert "The run goes on with devices 2, processes 1, fsdp 2; its last start had devices 1, " \
           "processes 1, fsdp 1." in capsys.readouterr().err  # fmt: skip
