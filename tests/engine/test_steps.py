"""The step: equal on one device and on eight, compiled once, and each of its options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.compilations import counting_compilations

from bocb_jax import optim
from bocb_jax.engine import losses, sharding
from bocb_jax.engine.passes import GradientOptions, Passes, Preprocessing
from bocb_jax.engine.program import Program
from bocb_jax.engine.steps import Averaging, OptimizerFunctions, Steps
from bocb_jax.engine.task import Classification
from bocb_jax.errors import UserError
from bocb_jax.models import create_model

SIDE, CLASSES, BATCH = 32, 10, 16


def scale(batch):
    return batch["image"].astype(jnp.float32) / 128 - 1


def scale_both(batch, key):
    del key
    return scale(batch), batch["label"]


PLAIN, WITHOUT = GradientOptions(), Averaging()


def program(
    model="vit_mini",
    opt="sgd",
    mesh=None,
    options=PLAIN,
    averaging=WITHOUT,
    build=None,
    **model_args,
):
    def create(rngs):
        return create_model(model, num_classes=CLASSES, image_size=SIDE, rngs=rngs, **model_args)

    return Program(
        Steps(
            Passes(
                build or create,
                Preprocessing(scale_both, scale),
                lambda model: Classification(),
                options,
                "cpu",
            ),
            OptimizerFunctions(
                lambda model: optim.create_optimizer(opt, optim.schedules.constant(1.0)),
                optim.set_hyperparameters,
                optim.current_learning_rate,
            ),
            averaging,
        ),
        mesh or sharding.make_mesh(devices=1),
    )


def batches(count, seed=0):
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield {
            "image": random.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8),
            "label": random.integers(0, CLASSES, BATCH, dtype=np.int32),
        }


def run(program, steps, lr=0.01, wd=1e-4, seed=0):
    key = jax.random.key(seed)
    state = program.init(key, lr, wd)
    rows = []
    for batch in batches(steps):
        state, metrics = program.train_step(state, batch, key)
        rows.append(metrics)
    return state, [float(row["loss"]) for row in jax.device_get(rows)]


@pytest.mark.parametrize(("model", "opt"), [
    pytest.param("resnet_mini", "sgd", marks=pytest.mark.slow), ("vit_mini", "adamw"),
])  # fmt: skip
def test_one_device_and_eight_give_the_same_losses(model, opt, monkeypatch):
    # Small arrays are split too, so that the minis are really sharded.
    monkeypatch.setattr(sharding.state_sharding, "__defaults__", (1,))
    lr = 0.02 if opt == "sgd" else 1e-4
    _, alone = run(program(model, opt), 20, lr=lr)
    assert alone[-1] != alone[0]
    for fsdp in (1, 8):
        spread = program(model, opt, mesh=sharding.make_mesh(fsdp, devices=8))
        state, together = run(spread, 20, lr=lr)
        split = [not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params)]
        assert any(split) == (fsdp > 1)
        np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_neither_the_second_step_nor_other_rates_nor_another_seed_compile():
    compiled = program("vit_mini", "adamw")
    run(compiled, 1)
    with counting_compilations() as found:
        run(compiled, 3, lr=0.5, wd=0.3, seed=7)
    assert not found


class Weak(nnx.Module):
    """A user's backbone whose scale has a weak type, as `jnp.full` makes it."""

    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.full((3,), 0.1))
        self.head = nnx.Linear(3, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head((self.scale[...][None, None, None] * x).mean((1, 2)))


def test_a_weakly_typed_parameter_does_not_have_the_second_step_compiled():
    compiled = program(build=Weak)
    run(compiled, 1)
    with counting_compilations() as found:
        run(compiled, 2)
    assert not found


def test_accumulation_is_the_mean_over_the_whole_batch():
    whole, parts = (program(options=GradientOptions(accumulate=n)) for n in (1, 4))
    (state, loss), (other, other_loss) = run(whole, 3), run(parts, 3)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_clipping_bounds_the_step():
    norm, lr = 1e-3, 0.1
    clipped = program(options=GradientOptions(clip_norm=norm))
    before = clipped.init(jax.random.key(0), lr, 0.0).params
    before = jax.tree.map(np.asarray, before)
    state, _ = run(clipped, 1, lr=lr, wd=0.0)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, state.params, before))
    np.testing.assert_allclose(moved, lr * norm, rtol=1e-2)


def test_the_average_of_the_weights_is_what_is_evaluated():
    decay = 0.5
    averaged = program(averaging=Averaging(ema=decay))
    start = jax.tree.map(np.asarray, averaged.init(jax.random.key(0), 0.01, 1e-4).params)
    first, _ = run(averaged, 1)
    expected = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, start, first.params)
    for a, b in zip(jax.tree.leaves(first.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    batch = {**next(batches(1)), "weight": np.ones(BATCH, np.float32)}
    swapped = dataclasses.replace(first, params=first.ema, ema=first.params)
    assert averaged.eval_step(first, batch)["loss"] != averaged.eval_step(swapped, batch)["loss"]
    kept = averaged.weights(first)["params"]
    jax.tree.map(np.testing.assert_array_equal, kept, first.ema)


def test_the_average_leaves_its_random_start():
    """The decay of update n is min(decay, 1 - n**(-2/3)), as of timm's ModelEmaV3."""
    expected, found = None, None
    averaged = program(averaging=Averaging(ema=0.5, ema_warmup=True), build=Weak)
    key = jax.random.key(0)
    state = averaged.init(key, 0.01, 0.0)
    for number, batch in enumerate(batches(4), start=1):
        state, _ = averaged.train_step(state, batch, key)
        params, found = (jax.tree.map(np.asarray, tree) for tree in (state.params, state.ema))
        decay = min(0.5, 1 - number ** (-2 / 3))
        expected = expected or params  # the first decay is 0
        expected = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, expected, params)  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_batch_statistics_are_kept_and_are_those_of_the_global_batch():
    state, _ = run(program("resnet_mini"), 2)
    means = [v for p, v in jax.tree.leaves_with_path(state.model_state) if "mean" in str(p)]
    assert means
    assert all(np.any(np.asarray(mean) != 0) for mean in means)


def test_padding_does_not_count_in_evaluation():
    evaluated = program()
    state = evaluated.init(jax.random.key(0), 0.1, 0.0)
    batch = next(batches(1))
    weight = np.arange(BATCH) < 5
    sums = evaluated.eval_step(state, {**batch, "weight": weight.astype(np.float32)})
    garbled = {**batch, "image": np.where(weight[:, None, None, None], batch["image"], 0)}
    again = evaluated.eval_step(state, {**garbled, "weight": weight.astype(np.float32)})
    assert sums["count"] == 5
    np.testing.assert_allclose(sums["loss"], again["loss"], rtol=1e-6)


def test_a_module_without_modes_or_rngs_trains():
    class Linear(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(SIDE * SIDE * 3, CLASSES, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.head(self.dropout(x.reshape(len(x), -1)))

    plain = program(build=Linear)
    _, first = run(plain, 3, lr=1e-3)
    _, again = run(plain, 3, lr=1e-3)
    assert first == again


def test_the_rule_splits_the_largest_axis_that_divides():
    mesh = sharding.make_mesh(4, devices=8)
    shapes = {"a": (3, 8, 64), "b": (6, 7), "c": (4,), "d": ()}
    leaves = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {k: tuple(v.spec) for k, v in sharding.state_sharding(mesh, leaves, 1).items()}
    assert specs == {"a": (None, None, "fsdp"), "b": (), "c": ("fsdp",), "d": ()}
    assert sharding.state_sharding(mesh, leaves, 10**6)["a"].is_fully_replicated


def test_a_batch_must_divide_and_the_message_says_what_would():
    mesh = sharding.make_mesh(devices=8)
    sharding.check_batch(64, mesh, 2)
    with pytest.raises(UserError, match=r"batch_size is 60, .* among 8 devices; 64 can"):
        sharding.check_batch(60, mesh)
    with pytest.raises(UserError, match="8 devices x 3 parts; 24 can"):
        sharding.check_batch(16, mesh, 3)
    with pytest.raises(UserError, match="there are 8 devices"):
        sharding.make_mesh(devices=9)
    with pytest.raises(UserError, match="does not divide the 8 devices"):
        sharding.make_mesh(3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_against_the_definition(smoothing):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(7, 5)) * 3, random.integers(0, 5, 7)
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = losses.cross_entropy(jnp.asarray(logits, jnp.float32), labels, smoothing)
    np.testing.assert_allclose(found, -(target * log_p).sum(-1), rtol=1e-5)
