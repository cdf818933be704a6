"""A training step as one program and as two, and what the programs of a net share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.compilations import counting_compilations

from bocb_jax import optim
from bocb_jax.engine.passes import GradientOptions, Passes, Preprocessing
from bocb_jax.engine.program import CompiledPasses, Program, TwoPrograms
from bocb_jax.engine.sharding import make_mesh
from bocb_jax.engine.steps import Averaging, OptimizerFunctions, Steps
from bocb_jax.engine.task import Classification
from bocb_jax.models import layers

SIDE, CLASSES, BATCH = 8, 5, 16


class Net(nnx.Module):
    """With BatchNorm, dropout and a convolution."""

    def __init__(self, rngs):
        self.conv = layers.Conv(3, 8, 3, rngs=rngs)
        self.norm = layers.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x, rngs=None):
        x = jax.nn.gelu(self.norm(self.conv(x))).mean((1, 2))
        return self.head(self.dropout(x, rngs=rngs))


def passes(platform="cpu", **options):
    def scale(batch, *key):
        images = batch["image"].astype(jnp.float32) / 128 - 1
        return (images, batch["label"]) if key else images

    create_task, given = lambda model: Classification(), GradientOptions(**options)
    return Passes(Net, Preprocessing(scale, scale), create_task, given, platform)


def program(opt, shared=None, ema=None, devices=1, **options):
    functions = OptimizerFunctions(
        lambda model: optim.create_optimizer(opt, optim.schedules.constant(1.0)),
        optim.set_hyperparameters,
        optim.current_learning_rate,
        optim.optimizer_info(opt).evaluation_parameters,
    )
    mesh = make_mesh(devices=devices)
    shared = shared or CompiledPasses(passes(**options), mesh)
    return Program(Steps(shared.passes, functions, Averaging(ema=ema)), mesh, shared)


def batch(seed=0):
    draw = np.random.default_rng(seed)
    return {
        "image": draw.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8),
        "label": draw.integers(0, CLASSES, BATCH, dtype=np.int32),
    }


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
@pytest.mark.parametrize(
    ("opt", "options"),
    [("sgd", {}), ("lamb", {"clip_norm": 0.1}), ("muon", {"accumulate": 2}), ("sgd", {"ema": 0.9})],
)
def test_two_programs_are_one_but_for_rounding(opt, options, devices):
    # Of a tensor of n values the rounding of a fused and of a separate update differ by a few units
    # in the last place of the largest value that goes into it.
    found = program(opt, devices=devices, **options)
    assert isinstance(found.train_step, TwoPrograms)
    key = jax.random.key(1)
    whole, whole_metrics = found.whole_step(found.init(key, 0.01, 1e-3), batch(), key)
    two, metrics = found.train_step(found.init(key, 0.01, 1e-3), batch(), key)
    assert metrics.keys() == whole_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, whole_metrics[name], rtol=1e-5, err_msg=name)
    assert jax.tree.structure(two) == jax.tree.structure(whole)
    for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(whole), strict=True):
        assert a.dtype == b.dtype
        size = np.abs(np.asarray(b, np.float32)).max(initial=1e-3)
        np.testing.assert_allclose(a, b, atol=1e-5 * size)


@pytest.mark.parametrize(
    ("opt", "asks"),
    [
        *((name, False) for name in ("sgd", "adamw", "lookahead+adamw", "schedule_free_adamw")),
        *((name, True) for name in ("sam+sgd", "sophia", "lookahead+sam+sgd", "csophia")),
    ],
)
def test_an_optimizer_that_asks_for_gradients_takes_one_program(opt, asks):
    found = program(opt)
    assert found.steps.asks_for_gradients == asks
    assert (found.train_step is found.whole_step) == asks


def test_accelerators_take_one_program():
    shared = CompiledPasses(passes("gpu"), make_mesh(devices=1))
    found = program("sgd", shared)
    assert found.train_step is found.whole_step


def test_another_optimizer_compiles_nothing_of_the_net():
    shared = CompiledPasses(passes(), make_mesh(devices=1))
    key, weighted = jax.random.key(0), {**batch(), "weight": np.ones(BATCH, np.float32)}

    def run(opt):
        found = program(opt, shared)
        with counting_compilations() as names:
            state, _ = found.train_step(found.init(key, 0.01, 0.0), batch(), key)
            found.eval_step(state, weighted)
            found.update_batch_stats(state, state.model_state, batch(), key)
        return set(names)

    of_the_net = {f"jit({name})" for name in ("init_weights", "gradient_step", "evaluate")}
    assert of_the_net <= run("sgd")
    found = run("lion")
    assert "jit(update_step)" in found
    assert not found & {*of_the_net, "jit(update_batch_stats)"}


def test_what_was_lowered_and_compiled_is_the_step():
    found = program("adamw")
    key = jax.random.key(2)
    step = found.train_step.lower(found.abstract_state, batch(), key).compile()
    first, _ = step(found.init(key, 0.01, 0.0), batch(), key)
    second, _ = found.train_step(found.init(key, 0.01, 0.0), batch(), key)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
