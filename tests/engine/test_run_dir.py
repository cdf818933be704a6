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
