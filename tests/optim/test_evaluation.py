"""Optimizers that are evaluated elsewhere than they train: their schedule, and BatchNorm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.tiny_net import assert_same

from bocb_jax import optim
from bocb_jax.build import program_spec
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.data.registry import open_dataset
from bocb_jax.engine.passes import GradientOptions, Passes, Preprocessing
from bocb_jax.engine.program import Program
from bocb_jax.engine.sharding import make_mesh
from bocb_jax.engine.steps import Averaging, OptimizerFunctions, Steps
from bocb_jax.engine.task import Classification
from bocb_jax.models import create_model, layers
from bocb_jax.optim.schedules import Schedule, WarmupCosine
from bocb_jax.resolve import resolve
from bocb_jax.train import Loop, train


@pytest.mark.parametrize(
    ("opt", "asked", "expected"),
    [
        ("adamw", None, WarmupCosine),
        ("schedule_free_adamw", None, Schedule),
        ("sam+schedule_free_sgd", None, Schedule),
        ("schedule_free_adamw", "cosine", WarmupCosine),
    ],
)
def test_the_schedule_is_the_optimizers_own_unless_asked_otherwise(opt, asked, expected):
    config = from_dict(TrainConfig, {"opt": opt, "schedule": {"name": asked}})
    dataset = open_dataset("digits")
    spec = program_spec(config, resolve(config, dataset), dataset, steps_per_epoch=20)
    assert type(spec.schedule) is expected
    assert spec.schedule.warmup_steps > 0


class NormNet(nnx.Module):
    """Two convolutions with BatchNorm."""

    def __init__(self, *, num_classes, rngs):
        self.conv1 = layers.Conv(3, 8, 3, strides=2, rngs=rngs)
        self.norm1 = layers.BatchNorm(8, rngs=rngs)
        self.conv2 = layers.Conv(8, 16, 3, strides=2, rngs=rngs)
        self.norm2 = layers.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean((1, 2)))


def program(opt, model=f"{__name__}:NormNet", ema=None):
    return Program(
        Steps(
            Passes(
                lambda rngs: create_model(model, num_classes=10, rngs=rngs),
                Preprocessing(scale_both, scale),
                lambda model: Classification(),
                GradientOptions(),
                "cpu",
            ),
            OptimizerFunctions(
                lambda model: optim.create_optimizer(opt, optim.schedules.constant(1.0)),
                optim.set_hyperparameters,
                optim.current_learning_rate,
                optim.optimizer_info(opt).evaluation_parameters,
            ),
            Averaging(ema=ema),
        ),
        make_mesh(devices=1),
    )


def scale(batch):
    return batch["image"].astype(jnp.float32) / 128 - 1


def scale_both(batch, key):
    del key
    return scale(batch), batch["label"]


def batch(seed):
    draw = np.random.default_rng(seed)
    return {
        "image": draw.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
        "label": draw.integers(0, 10, 16, dtype=np.int32),
    }


def test_precise_batch_norm_is_taken_at_the_evaluated_weights():
    """As a training step from these weights would leave them."""
    key = jax.random.key(0)
    averaging, plain = program("schedule_free_sgd"), program("sgd")
    state = averaging.init(key, 0.5, 0.0)
    for seed in range(3):
        state, _ = averaging.train_step(state, batch(seed), key)
    precise = averaging.update_batch_stats(state, state.model_state, batch(3), key)

    def after_a_step_from(params):
        start = dataclasses.replace(
            plain.init(key, 0.1, 0.0), params=params, model_state=state.model_state
        )
        return plain.train_step(jax.tree.map(jnp.copy, start), batch(3), key)[0].model_state

    assert_same(precise, after_a_step_from(averaging.weights(state)["params"]), rtol=1e-5)
    with pytest.raises(AssertionError):
        assert_same(precise, after_a_step_from(state.params), rtol=1e-3)


def test_only_what_needs_it_has_precise_batch_norm():
    assert not program("sgd").eval_params_differ
    assert not program("schedule_free_adamw", "vit_mini").has_batch_stats
    for evaluating in (program("sgd", ema=0.9), program("sam+schedule_free_sgd")):
        assert evaluating.eval_params_differ
        assert evaluating.has_batch_stats


def test_a_run_is_evaluated_with_precise_batch_norm(tmp_path, compile_cache, monkeypatch):
    settings = {
        "model": f"{__name__}:NormNet",
        "opt": "schedule_free_sgd",
        "opt_args": {"b1": 0.3},  # puts the trained weights far from the evaluated ones
        "epochs": 3,
        "image_size": 16,
        "parallel": {"devices": 1},
        "log": {"progress": "none", "evaluate_every_epochs": 3},
        "compile_cache": compile_cache,
    }
    with_it = train(from_dict(TrainConfig, settings | {"workdir": str(tmp_path / "with")}))
    monkeypatch.setattr(Loop, "_eval_model_state", lambda loop: loop.trainer.model_state)
    without = train(from_dict(TrainConfig, settings | {"workdir": str(tmp_path / "without")}))
    assert with_it["test_loss"] < 0.98 * without["test_loss"]
