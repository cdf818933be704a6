"""A user's own backbone and optimizer train by name: by import path, decorator and entry point."""

import dataclasses
import importlib.metadata
import re
from pathlib import Path

import pytest

from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.train import train

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The README's two files, importable."""
    for block in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README.read_text(), re.DOTALL):
        (tmp_path / block[0]).write_text(block[1])
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def config(tmp_path, compile_cache):
    settings = {
        "epochs": 1,
        "lr": 1e-3,
        "batch_size": 256,
        "parallel": {"devices": 1},
        "log": {"progress": "none"},
        "workdir": str(tmp_path / "runs"),
        "compile_cache": compile_cache,
    }
    return from_dict(TrainConfig, settings)


@pytest.mark.usefixtures("own")
def test_by_import_path(config):
    outcome = train(dataclasses.replace(config, model="mynets:MyNet", opt="myopts:my_opt"))
    assert outcome["status"] == "finished"


@pytest.mark.usefixtures("own")
def test_by_entry_point(config, monkeypatch):
    points = [
        importlib.metadata.EntryPoint("my_net", "mynets:MyNet", "bocb_jax.models"),
        importlib.metadata.EntryPoint("my_opt", "myopts:my_opt", "bocb_jax.optimizers"),
    ]
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: [point for point in points if point.group == group],
    )
    outcome = train(dataclasses.replace(config, model="my_net", opt="my_opt"))
    assert outcome["status"] == "finished"
