"""The directory of a run: who may resume it."""

import dataclasses
import json

import pytest

from bocb_jax.config import ParallelConfig, TrainConfig, from_dict
from bocb_jax.engine import run_dir
from bocb_jax.errors import UserError
from bocb_jax.storage.lock import only_writer

CONFIG = {"model": "vit_mini", "lr": 0.1, "step": {"settling_batches": None}}
RESOLVED = {"learning_rate": 0.1, "hparams_source": "the command", "batch_size": 64}


def earlier(folder, **resolved):
    """Write config.json as the version that said `rates_from` did."""
    present = RESOLVED | resolved
    named = {run_dir.EARLIER_NAMES.get(name, name): value for name, value in present.items()}
    assert "rates_from" in named
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": CONFIG, "resolved": named}))


def test_a_run_of_an_earlier_version_can_be_resumed(tmp_path):
    earlier(tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    manifest = {"config": CONFIG, "resolved": RESOLVED}
    with run_dir.claim(tmp_path / "run", manifest, resume=True):
        pass
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_a_run_of_an_earlier_version_with_other_values_is_refused(tmp_path):
    earlier(tmp_path / "run", hparams_source="the defaults of sgd")
    manifest = {"config": CONFIG, "resolved": RESOLVED}
    with (
        pytest.raises(
            UserError, match="hparams_source: 'the defaults of sgd' there, 'the command'"
        ),
        run_dir.claim(tmp_path / "run", manifest, resume=True),
    ):
        pass


@pytest.mark.parametrize("left", ["checkpoints/last/7", "checkpoints/best/7", "metrics.jsonl"])
@pytest.mark.parametrize("config", [None, {"config": CONFIG}, {"config": CONFIG, "resolved": None}])
def test_what_was_trained_with_unknown_settings_is_not_adopted(tmp_path, left, config):
    folder = tmp_path / "run"
    (folder / left).mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(UserError, match=rf"holds a run \({left}\), but its config.json"),
        run_dir.claim(folder, {"config": CONFIG, "resolved": RESOLVED}, resume=True),
    ):
        pass
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("resolved", [None, {}])
def test_a_start_that_failed_early_can_be_made_again(tmp_path, resolved):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": CONFIG, "resolved": resolved}))
    (folder / "result.json").write_text(json.dumps({"status": "crashed"}))
    with run_dir.claim(folder, {"config": CONFIG, "resolved": RESOLVED}, resume=True):
        assert json.loads((folder / "config.json").read_text())["resolved"] == RESOLVED


def test_a_run_of_an_earlier_version_keeps_its_values(tmp_path):
    assert run_dir.earlier_defaults(tmp_path / "run") == {}
    earlier(tmp_path / "run")
    assert run_dir.earlier_defaults(tmp_path / "run") == run_dir.DEFAULTS_OF_EARLIER_VERSIONS
    manifest = {"config": CONFIG, "resolved": {**RESOLVED, "ema_warmup": False}}
    with run_dir.claim(tmp_path / "run", manifest, resume=True):
        pass


def ended(folder, config, epochs, status="finished"):
    """Write the folder of a run that has ended."""
    folder.mkdir(parents=True)
    manifest = {"config": config.identity(), "resolved": {"epochs": epochs}}
    (folder / "config.json").write_text(json.dumps(manifest))
    (folder / "result.json").write_text(json.dumps({"status": status}))


@pytest.fixture
def five(tmp_path):
    return from_dict(TrainConfig, {"epochs": 5, "workdir": str(tmp_path), "label": "a"})


def test_other_epochs_are_a_new_run(five, tmp_path):
    ended(five.folder(), five, 5)
    longer = dataclasses.replace(five, epochs=10)
    config, said = run_dir.with_other_epochs(longer)
    assert config == longer
    assert f"{five.folder()} ended after 5 epochs. With 10 the learning-rate schedule is" in said
    assert f"from the start: {longer.folder()}" in said
    assert f"--init {five.folder()}" in said
    ended(longer.folder(), longer, 10)
    assert run_dir.with_other_epochs(longer) == (longer, None)  # it has begun


def test_other_epochs_of_a_named_run_get_another_name(five, tmp_path):
    named = dataclasses.replace(five, run_id="mine")
    ended(tmp_path / "mine", named, 5)
    longer = dataclasses.replace(named, epochs=10)
    for asked in (longer, dataclasses.replace(longer, workdir=str(tmp_path / "mine"), run_id=None)):
        config, said = run_dir.with_other_epochs(asked)
        assert config.folder() == tmp_path / "mine-epochs10"
        assert f"from the start: {config.folder()}. " in said
    ended(config.folder(), config, 10)
    config, said = run_dir.with_other_epochs(longer)
    assert (config.folder(), said) == (tmp_path / "mine-epochs10", None)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"lr": 0.5}, "finished"),
        ({"seed": 1}, "finished"),
        ({}, "diverged"),
        ({"epochs": 5}, "finished"),
    ],
)
def test_other_runs_are_left_alone(five, changes, status):
    ended(five.folder(), five, 5, status)
    config = dataclasses.replace(five, **{"epochs": 10, **changes})
    assert run_dir.with_other_epochs(config) == (config, None)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"resolved": {"epochs": "5"}, "config": {}}']
)
def test_damaged_runs_are_left_alone(five, text):
    ended(five.folder(), five, 5)
    (five.folder() / "config.json").write_text(text)
    longer = dataclasses.replace(five, epochs=10)
    assert run_dir.with_other_epochs(longer) == (longer, None)


def begun(folder, config, result=None):
    """Write the folder of a run that has begun."""
    folder.mkdir(parents=True)
    manifest = {"config": config.identity(), "resolved": {"epochs": 5}}
    (folder / "config.json").write_text(json.dumps(manifest))
    if result is not None:
        (folder / "result.json").write_text(json.dumps({"status": result}))


@pytest.fixture
def two(five):
    return dataclasses.replace(five, parallel=ParallelConfig(devices=2, fsdp=2))


@pytest.mark.parametrize("result", [None, "crashed"])
def test_a_run_goes_on_with_other_devices_in_its_folder(five, two, result):
    begun(five.folder(), five, result)
    assert run_dir.with_other_devices(two).folder() == five.folder() != two.folder()
    assert run_dir.with_other_devices(five) == five


@pytest.mark.parametrize("result", ["finished", "diverged"])
def test_an_ended_run_does_not_go_on_with_other_devices(five, two, result):
    begun(five.folder(), five, result)
    assert run_dir.with_other_devices(two) == two


def test_runs_that_differ_or_train_or_have_several_folders_are_left(five, two):
    begun(five.folder(), five)
    other = dataclasses.replace(two, lr=0.5)
    assert run_dir.with_other_devices(other) == other
    with only_writer(five.folder(), run_dir.LOCK, "taken"):
        assert run_dir.with_other_devices(two) == two
    four = dataclasses.replace(two, parallel=ParallelConfig(devices=4))
    begun(four.folder(), four)
    assert run_dir.with_other_devices(two) == two
    begun(two.folder(), two)
    assert run_dir.with_other_devices(two) == two


def test_every_start_is_noted(tmp_path):
    assert run_dir.note_start(tmp_path, 0, 1, 1) is None
    assert run_dir.note_start(tmp_path, 7, 1, 1) is None
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"at": "20')  # cut off
    said = run_dir.note_start(tmp_path, 9, 4, 2)
    assert said == (
        "The run goes on with devices 4, processes 1, fsdp 2; its last start had devices 1, "
        "processes 1, fsdp 1."
    )
    lines = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [(line["step"], line["devices"]) for line in lines] == [(0, 1), (7, 1), (9, 4)]
    assert lines[0]["platform"] == "cpu"
