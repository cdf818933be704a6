"""The directory of a run: who may resume it."""

import json

import pytest

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
