"""A user's own backbone and optimizer train by name: by import path, decorator and entry point."""

import dataclasses
import re

import pytest
from helpers.pages import ROOT

import bocb_jax
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.errors import UserError
from bocb_jax.models.factory import MODELS
from bocb_jax.optim.registry import OPTIMIZERS
from bocb_jax.train import train

GUIDE = ROOT / "docs/guides/own.md"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The two files of the guide, importable."""
    for block in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", GUIDE.read_text(), re.DOTALL):
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


SIGN_DESCENT = """
import jax
import jax.numpy as jnp
import optax

def sign_descent(learning_rate, b1=0.9):
    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(grads, momentum, params=None):
        momentum = jax.tree.map(lambda m, g: b1 * m + g, momentum, grads)
        return jax.tree.map(lambda m: -learning_rate * jnp.sign(m), momentum), momentum

    return optax.GradientTransformation(init, update)
"""


@pytest.fixture
def installed(own, tmp_path, monkeypatch):
    """Another package, as pip would leave it, that offers a backbone and an optimizer."""
    (tmp_path / "signs.py").write_text(SIGN_DESCENT)
    record = tmp_path / "vision_signs-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: vision-signs\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(
        "[bocb_jax.models]\nmy_net = mynets:MyNet\n"
        "[bocb_jax.optimizers]\nsign_descent = signs:sign_descent\n"
    )
    for registry in (MODELS, OPTIMIZERS):  # what was found there is forgotten afterwards
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.usefixtures("installed")
def test_by_entry_point_of_another_package(config):
    assert "sign_descent" in bocb_jax.list_optimizers("sign*")
    config = dataclasses.replace(config, model="my_net", opt="sign_descent", opt_args={"b1": 0.5})
    assert train(config)["status"] == "finished"
    with pytest.raises(UserError, match="no hyper-parameter b2"):
        train(dataclasses.replace(config, opt_args={"b2": 0.5}))
    with pytest.raises(UserError, match="sign_descent has no weight decay"):
        bocb_jax.create_optimizer("sign_descent", 0.1, weight_decay=0.1)


@pytest.mark.usefixtures("own")
def test_a_wrapper_around_ones_own(config):
    outcome = train(
        dataclasses.replace(config, model="mynets:MyNet", opt="lookahead+myopts:my_opt")
    )
    assert outcome["status"] == "finished"
