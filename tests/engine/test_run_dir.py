"""The directory of a run: who may resume it."""

import dataclasses
import json

import pytest

from bocb_jax.config import TrainConfig
from bocb_jax.engine import run_dir
from bocb_jax.errors import UserError

CONFIG = {"lr": 0.1, "step": {"settling_batches": None}}
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
@pytest.mark.parametrize(
    "config", [None, {}, {"config": None, "resolved": RESOLVED}, {"config": CONFIG},
               {"config": CONFIG, "resolved": None}]
)  # fmt: skip
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


def test_a_start_that_failed_early_can_be_made_again(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": CONFIG, "resolved": None}))
    (folder / "result.json").write_text(json.dumps({"status": "crashed"}))
    with run_dir.claim(folder, {"config": CONFIG, "resolved": RESOLVED}, resume=True):
        assert json.loads((folder / "config.json").read_text())["resolved"] == RESOLVED


def test_a_run_with_other_epochs_that_has_ended_is_found(tmp_path):
    short = TrainConfig(workdir=str(tmp_path), epochs=1)
    long = dataclasses.replace(short, epochs=3)

    def put(config, status):
        folder = config.folder()
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"config": config.identity()}))
        (folder / "result.json").write_text(json.dumps({"status": status}))
        return folder

    assert run_dir.ended_with_other_epochs(long) is None
    put(dataclasses.replace(short, lr=0.5), "finished")
    put(short, "diverged")
    assert run_dir.ended_with_other_epochs(long) is None
    folder = put(short, "finished")
    assert run_dir.ended_with_other_epochs(long) == folder
    assert run_dir.ended_with_other_epochs(dataclasses.replace(long, seed=1)) is None
    (folder / "config.json").write_text(json.dumps({"config": [1]}))
    assert run_dir.ended_with_other_epochs(long) is None
    (folder / "result.json").write_text("{")
    assert run_dir.ended_with_other_epochs(long) is None
    put(long, "running")
    assert run_dir.ended_with_other_epochs(long) is None
