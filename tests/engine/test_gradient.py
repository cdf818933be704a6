"""Every gradient that an optimizer asks for is of the whole batch, and clipped as the first one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bocb_jax import optim
from bocb_jax.engine.passes import GradientOptions, Passes, Preprocessing
from bocb_jax.engine.steps import OptimizerFunctions, Steps
from bocb_jax.engine.task import Classification
from bocb_jax.errors import UserError

SIDE, CLASSES, BATCH = 4, 5, 16
PARTS = (1, 2, 4, 8)
QUICKLY = {"xla_backend_optimization_level": 0}  # to compile, not to run
# The second gradient of SAM, in all nestings; Sophia's, whose labels are drawn; both.
ASKING = (
    *("sam+sgd", "lookahead+sam+sgd", "sophia", "sam+sophia"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            *("sam+adamw", "sam+lookahead+sgd", "sam+schedule_free_sgd"),
            *("csophia", "lookahead+sophia", "lookahead+sam+sophia"),
        )
    ),
)


class Net(nnx.Module):
    """Neither dropout nor BatchNorm, which see one part at a time."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(SIDE * SIDE * 3, 8, rngs=rngs)
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.hidden(x.reshape(len(x), -1))))


class Norm(Net):
    """With BatchNorm and dropout."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs=None):
        hidden = self.norm(self.hidden(x.reshape(len(x), -1)))
        return self.head(self.dropout(jnp.tanh(hidden), rngs=rngs))


def scale(images):
    return images.astype(jnp.float32) / 128 - 1


def steps_of(opt, net=Net, opt_args=None, **options):
    passes = Passes(
        net,
        Preprocessing(
            lambda batch, key: (scale(batch["image"]), batch["label"]),
            lambda batch: scale(batch["image"]),
        ),
        lambda model: Classification(),
        GradientOptions(**options),
        "gpu",  # a loop over the parts, which compiles faster than the unrolled one of CPUs
    )
    functions = OptimizerFunctions(
        lambda model: optim.create_optimizer(
            opt, optim.schedules.constant(1.0), **(opt_args or {})
        ),
        optim.set_hyperparameters,
        optim.current_learning_rate,
    )
    return Steps(passes, functions)


def batches():
    draw = np.random.default_rng(0)
    while True:
        yield {
            "image": draw.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8),
            "label": draw.integers(0, CLASSES, BATCH, dtype=np.int32),
        }


@functools.cache
def weights_of(net):
    return jax.tree.map(np.asarray, steps_of("sgd", net).passes.init_weights(jax.random.key(0)))


def start(steps, lr, net=Net):
    weights = jax.tree.map(jnp.asarray, weights_of(net))
    return steps.init_state(weights, jnp.float32(lr), jnp.float32(0))


def trained(opt, count=2, lr=0.1, **options):
    """Return the parameters before and after some steps."""
    steps = steps_of(opt, **options)
    first = state = start(steps, lr)
    step = jax.jit(steps.train_step, compiler_options=QUICKLY)
    for batch in itertools.islice(batches(), count):
        state, _ = step(state, batch, jax.random.key(1))
    return first.params, state.params


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("opt", ASKING)
def test_parts_change_no_update(opt):
    """Within what float32 loses in a sum; half a batch would move them by tenths."""
    lr = 1e-3 if "sophia" in opt or "adam" in opt else 0.1
    args = {"opt_args": {"batch_size": 4}} if opt.endswith("sophia") else {}
    before, whole = trained(opt, lr=lr, **args)
    size = np.linalg.norm(flat(whole) - flat(before))
    for parts in PARTS[1:] if opt in ("sam+sgd", "sophia") else (4,):
        _, params = trained(opt, lr=lr, accumulate=parts, **args)
        assert np.linalg.norm(flat(params) - flat(whole)) < 1e-5 * size, parts


@pytest.mark.parametrize(
    ("opt", "parts"),
    [
        *itertools.product(["sgd", "sam+sgd"], PARTS),
        ("lookahead+sam+sgd", 4),
        ("sam+lookahead+sgd", 4),
    ],
)
def test_clipped_as_sgd_is(opt, parts):
    clip, lr = 0.01, 0.1
    before, after = trained(opt, count=1, lr=lr, clip_norm=clip, accumulate=parts)
    moved = np.linalg.norm(flat(after) - flat(before))
    np.testing.assert_allclose(moved, lr * clip, rtol=2e-4)  # 1e-6 is added to a norm of 0.01


def test_the_second_gradient_is_of_the_batch_at_the_top():
    """Against the definition of SAM, in float64."""
    clip, lr, rho = 0.3, 0.1, 0.05
    steps = steps_of("sam+sgd", accumulate=4, clip_norm=clip, opt_args={"sam_rho": rho})
    state, batch = start(steps, lr), next(batches())
    graph = nnx.graphdef(steps.passes.abstract_model)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), state.params)
        images = jnp.asarray(batch["image"], jnp.float64) / 128 - 1

        def loss(params):
            logits = nnx.merge(graph, params, {})(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        grads = jax.grad(loss)(params)
        climb = rho / optax.tree.norm(grads)
        sharp = jax.grad(loss)(jax.tree.map(lambda p, g: p + climb * g, params, grads))
        shrink = min(1.0, clip / float(optax.tree.norm(sharp)))
        expected = flat(jax.tree.map(lambda g: -lr * shrink * g, sharp))
        norm = float(optax.tree.norm(grads))
        assert shrink < 1
    after, metrics = jax.jit(steps.train_step)(state, batch, jax.random.key(1))
    found = flat(after.params) - flat(state.params)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.linalg.norm(expected))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def asked(opt_update, **options):
    """Return what an optimizer sees in one step that keeps `opt_update(extra, params)`."""
    kept = {}

    def create(model):
        def update(grads, state, params, **extra):
            kept["seen"] = {"grads": grads, **opt_update(extra, params)}
            return jax.tree.map(jnp.zeros_like, params), state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    steps = steps_of("sgd", net=Norm, **options)
    functions = OptimizerFunctions(
        create, lambda state, **rates: state, lambda state: jnp.float32(0)
    )
    steps = Steps(steps.passes, functions)
    state = start(steps, 0.1, Norm)

    @jax.jit
    def step(state, batch, key):
        new, _ = steps.train_step(state, batch, key)
        return kept["seen"], new

    return step(state, next(batches()), jax.random.key(2))


@pytest.mark.parametrize("parts", [1, 4])
def test_at_the_same_point_the_same_gradient(parts):
    """With the same dropout masks and the same statistics, whatever the layers."""

    def ask(extra, params):
        value, again = extra["value_and_grad_fn"](params)
        other = jax.tree.map(lambda p: p + 0.5, params)
        return {
            "again": again,
            "value": extra["value"],
            "value again": value,
            "elsewhere": extra["value_and_grad_fn"](other)[1],
            "size": jnp.asarray(extra["batch_size"]),
        }

    seen, after = asked(ask, accumulate=parts, clip_norm=0.05)
    np.testing.assert_allclose(flat(seen["again"]), flat(seen["grads"]), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(seen["value again"], seen["value"], rtol=1e-6)
    assert seen["size"] == BATCH
    for name in ("grads", "again", "elsewhere"):
        np.testing.assert_allclose(np.linalg.norm(flat(seen[name])), 0.05, rtol=1e-3)
    # The running statistics are those of the first pass, not of the one elsewhere.
    untouched, plain = asked(lambda extra, params: {}, accumulate=parts, clip_norm=0.05)
    del untouched
    jax.tree.map(np.testing.assert_array_equal, after.model_state, plain.model_state)


def test_drawn_labels_do_not_depend_on_the_parts():
    def ask(extra, params):
        draw = functools.partial(extra["sampled_label_grad_fn"], params)
        return {"drawn": draw(jax.random.key(5)), "others": draw(jax.random.key(6))}

    seen, _ = asked(ask, accumulate=1, clip_norm=0.05)
    assert not np.allclose(flat(seen["drawn"]), flat(seen["others"]))
    np.testing.assert_allclose(np.linalg.norm(flat(seen["drawn"])), 0.05, rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["sam+sam+sgd", "lookahead+lookahead+sgd", "sam+lookahead+sam+sgd"]
)
def test_a_wrapper_wraps_once(name):
    with pytest.raises(UserError, match=r"wraps .* twice; .*once"):
        optim.create_optimizer(name, 0.1)
