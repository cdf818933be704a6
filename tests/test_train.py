"""The main job, end to end, as a user starts it."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from drills import kill_run
from helpers import tfds_tiny
from PIL import Image

from bocb_jax.__main__ import main
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.engine import signals
from bocb_jax.engine.outcome import failure
from bocb_jax.errors import Interrupted, UserError
from bocb_jax.storage.files import read_jsonl
from bocb_jax.tasks import kinds
from bocb_jax.train import train

SMALL = {
    "model": "vit_mini",
    "opt": "lamb",
    "epochs": 2,
    "batch_size": 256,
    "parallel": {"devices": 1},
    "log": {"every_steps": 3, "progress": "none"},
}


@pytest.fixture
def config(tmp_path, compile_cache):
    return from_dict(
        TrainConfig, {**SMALL, "workdir": str(tmp_path), "compile_cache": compile_cache}
    )


def words(config, **changes):
    """The same run as a command line."""
    settings = {"model": config.model, "opt": config.opt, "epochs": config.epochs}
    settings |= {"batch-size": config.batch_size, "workdir": config.workdir}
    settings |= {"compile-cache": config.compile_cache, "parallel.devices": 1, "log.every-steps": 3}
    settings |= {"log.progress": "lines"} | changes
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def test_a_run_leaves_its_record(config):
    outcome = train(config)
    folder = config.folder()
    assert json.loads((folder / "result.json").read_text()) == outcome
    assert outcome["status"] == "finished"
    assert 0 <= outcome["test_accuracy"] <= 1
    assert outcome["best_validation_accuracy"] >= outcome["validation_accuracy"] > 0
    record = json.loads((folder / "config.json").read_text())
    assert record["config"]["model"] == "vit_mini"
    assert record["resolved"]["learning_rate"] > 0
    assert record["versions"]["jax"] == jax.__version__
    assert record["device"]["platform"] == "cpu"
    lines = read_jsonl(folder / "metrics.jsonl")
    # 4 steps an epoch: every third one, and the end of each epoch.
    assert [line["step"] for line in lines] == [3, 4, 6, 8]
    for line in lines:
        names = {"epoch", "loss", "accuracy", "learning_rate", "grad_norm", "images_per_second"}
        assert names <= line.keys()
    assert sum("validation_accuracy" in line for line in lines) == config.epochs
    assert (folder / "checkpoints" / "last" / str(outcome["steps"])).is_dir()
    assert len(list((folder / "checkpoints" / "best").iterdir())) == 1


def test_the_same_command_after_the_end_changes_nothing(config):
    outcome = train(config)
    before = {path: path.stat().st_mtime_ns for path in config.folder().rglob("*.json*")}
    assert train(config) == outcome
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_same_command_elsewhere_gives_the_same_bits(config, tmp_path):
    again = dataclasses.replace(config, workdir=str(tmp_path / "again"))
    train(config)
    train(again)
    kill_run.compare(again.folder(), config.folder())


@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_signal_stops_the_run_after_saving(config, number, code):
    command = [sys.executable, "-m", "bocb_jax.train", *words(config, epochs=200)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = dataclasses.replace(config, epochs=200).folder() / "metrics.jsonl"
    while not read_jsonl(log) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "saved; run the same command again to resume" in said
    step = max(int(path.name) for path in (log.parent / "checkpoints" / "last").iterdir())
    assert f"Stopped at step {step}" in said
    assert not (log.parent / "result.json").exists()


@pytest.mark.slow
def test_the_end_of_the_time_stops_the_run_after_saving(config, monkeypatch):
    undisturbed = dataclasses.replace(config, run_id="undisturbed")
    train(undisturbed)
    limited = dataclasses.replace(config, run_id="limited", max_minutes=1.0)
    for step in (3, 6):  # one in each epoch
        clock = iter([0.0] * (step - 1))  # the loop looks before every step, and in evaluations
        late = types.SimpleNamespace(monotonic=lambda clock=clock: next(clock, math.inf))
        with monkeypatch.context() as patch:
            patch.setattr("bocb_jax.engine.signals.time", late)
            said = r"The time of --max-minutes is over\. Stopped at step .* and saved; run the same"
            with pytest.raises(Interrupted, match=said) as stopped:
                train(limited)
        assert stopped.value.exit_code == 143
    train(dataclasses.replace(limited, max_minutes=None))
    kill_run.compare(limited.folder(), undisturbed.folder())


def test_a_run_ends_before_its_time_by_as_much_as_a_save_takes():
    caught = signals.Signals(deadline=time.monotonic() + 100)
    assert not caught.received(1, reserve=10)
    assert caught.received(2, reserve=101)
    assert caught.received(3)
    assert caught.number == signal.SIGTERM


def test_a_diverged_run_is_a_result(config, capsys):
    arguments = words(config, opt="sgd", lr=1e30)
    assert main(["train", *arguments]) == 3
    (result,) = config.folder().parent.glob("*/result.json")
    outcome = json.loads(result.read_text())
    assert outcome["status"] == "diverged"
    assert 1 <= outcome["diverged_at_step"] == outcome["steps"] <= 10
    lines = read_jsonl(result.with_name("metrics.jsonl"))
    assert lines[-1]["step"] == outcome["diverged_at_step"]
    said = capsys.readouterr().err
    assert "no longer finite" in said
    assert main(["train", *arguments]) == 3  # and says so again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet5"}, "There is no model 'resnet5'. Did you mean resnet50"),
        ({"opt": "adamv"}, "There is no optimizer 'adamv'. Did you mean adam"),
        ({"dataset": "digit"}, "There is no dataset 'digit'. Did you mean digits"),
        ({"lr": 0}, "lr is 0.0; it must be a positive number"),
        ({"batch-size": 100_000}, "fewer than one batch"),
        ({"batch-size": 63, "parallel.devices": 8}, "cannot be divided evenly among 8 devices"),
        ({"opt-args.beta": 0.9}, "beta"),
        ({"model-args.deep": 3}, "vit_mini has no setting deep"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(config, changes, message, capsys):
    assert main(["train", *words(config, **changes)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said
    assert not list(config.folder().parent.iterdir())


def test_a_folder_with_other_settings_is_refused_and_the_difference_shown(config):
    train(dataclasses.replace(config, run_id="mine"))
    folder = dataclasses.replace(config, run_id="mine").folder()
    before = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    with pytest.raises(UserError, match=r"seed: 0 there, 5 here"):
        train(dataclasses.replace(config, run_id="mine", seed=5))
    with pytest.raises(UserError, match=r"lr: None there, 0.5 here"):
        train(dataclasses.replace(config, workdir=str(folder), lr=0.5))
    with pytest.raises(UserError, match="--no-resume asks for a new one"):
        train(dataclasses.replace(config, run_id="mine", resume=False))
    assert before == {path: path.read_bytes() for path in before}


def test_two_processes_do_not_share_a_folder(config):
    import fcntl

    folder = config.folder()
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process is writing"):
            train(config)


def test_a_crash_is_recorded_and_the_run_can_be_resumed(config, monkeypatch):
    from bocb_jax.engine.metrics import JsonLines

    write = JsonLines.write

    def break_at_five(self, line):
        write(self, line)
        if line["step"] >= 5:
            raise RuntimeError("out of luck")

    monkeypatch.setattr(JsonLines, "write", break_at_five)
    with pytest.raises(RuntimeError, match="out of luck"):
        train(config)
    outcome = json.loads((config.folder() / "result.json").read_text())
    assert (outcome["status"], outcome["error"]) == ("crashed", "RuntimeError: out of luck")
    assert "break_at_five" in outcome["traceback"]
    monkeypatch.undo()
    assert train(config)["status"] == "finished"


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), RuntimeError("RESOURCE_EXHAUSTED: allocating 9 bytes.")]
)
def test_memory_that_runs_out_before_the_first_step_is_a_sentence(config, monkeypatch, error):
    def loader(self, sharding):
        raise error

    monkeypatch.setattr(kinds._LabelledImages, "loader", loader)
    with pytest.raises(UserError, match=r"^Memory ran out.*use a smaller --batch-size") as caught:
        train(config)
    outcome = json.loads((config.folder() / "result.json").read_text())
    assert outcome["status"] == failure(caught.value)["status"] == "out_of_memory"
    assert (outcome["steps"], outcome["population"]) == (0, 1)
    assert outcome["wall_seconds"] > 0


@pytest.mark.slow
def test_tensorboard_events_are_written(config):
    chatty = dataclasses.replace(config, log=dataclasses.replace(config.log, tensorboard=True))
    train(chatty)
    assert list((config.folder() / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_another_learning_rate_compiles_nothing_in_the_same_process(config):
    from helpers.compilations import counting_compilations

    train(config)
    other = dataclasses.replace(config, lr=0.02, weight_decay=0.3, seed=3)
    with counting_compilations() as found:
        train(other)
    assert not found


@pytest.mark.slow
def test_a_second_process_starts_its_first_step_three_times_sooner(config, tmp_path):
    seconds = []
    for name in ("cold", "warm"):
        cache = str(tmp_path / "compiled")
        arguments = words(config, model="resnet_mini", epochs=1, workdir=tmp_path / name)
        arguments[arguments.index("--compile-cache") + 1] = cache
        subprocess.run([sys.executable, "-m", "bocb_jax.train", *arguments], check=True)
        (result,) = (tmp_path / name).glob("*/result.json")
        seconds.append(json.loads(result.read_text())["seconds_to_first_step"])
    print(f"first step after {seconds[0]:.1f} s cold, {seconds[1]:.1f} s warm")
    assert seconds[0] > 3 * seconds[1]


@pytest.fixture
def image_folder(tmp_path):
    """Dark and light noise as PNG files."""
    random = np.random.default_rng(0)
    root = tmp_path / "images"
    for split, count in (("train", 40), ("val", 10), ("test", 10)):
        for label, low in (("dark", 0), ("light", 128)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def on_folder(config, folder, **changes):
    settings = {"image_size": 32, "batch_size": 16, "epochs": 3, **changes}
    return dataclasses.replace(config, dataset=f"folder:{folder}", **settings)


def test_an_image_folder_trains(config, image_folder):
    assert train(on_folder(config, image_folder))["test_accuracy"] == 1.0


def test_a_corrupt_image_is_named_or_skipped(config, image_folder):
    broken = image_folder / "train" / "dark" / "7.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError, match=str(broken)):
        train(on_folder(config, image_folder))
    assert not list(config.folder().parent.glob("*/result.json"))
    skipping = on_folder(config, image_folder, on_corrupt="skip", run_id="skipping")
    assert train(skipping)["status"] == "finished"


@pytest.mark.parametrize("missing", ["*", "train/*", "train/*/*"])
def test_an_image_folder_without_images_is_a_sentence(config, image_folder, missing):
    for path in image_folder.glob(missing):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=re.escape(str(image_folder))):
        train(on_folder(config, image_folder))
    assert not list(config.folder().parent.glob("*/config.json"))


@pytest.mark.slow
def test_tfds_by_name_without_tensorflow(config, tmp_path):
    tfds_tiny.build(tmp_path / "tfds")
    data = dataclasses.replace(config.data, dir=str(tmp_path / "tfds"))
    outcome = train(
        dataclasses.replace(
            config, dataset="tfds:tiny_shapes", batch_size=8, image_size=32, data=data
        )
    )
    assert outcome["status"] == "finished"
    assert "tensorflow" not in sys.modules


def test_a_data_set_that_is_nowhere_is_a_sentence(config, tmp_path, capsys):
    arguments = words(config, dataset="tfds:oxford_flowers102", **{"data.dir": tmp_path / "none"})
    assert main(["train", *arguments]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "oxford_flowers102" in said
    assert "Traceback" not in said


def test_the_environment_can_name_the_compile_cache(monkeypatch):
    from bocb_jax.engine.compile_cache import use_compile_cache

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setitem(os.environ, "JAX_COMPILATION_CACHE_DIR", "/nowhere/in/particular")
    try:
        use_compile_cache(None)
        assert jax.config.jax_compilation_cache_dir == "/nowhere/in/particular"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
