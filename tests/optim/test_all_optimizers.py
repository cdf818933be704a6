"""What every registered optimizer must do, whatever its mathematics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny_net import assert_same, extra_args, loss_of, tiny_params

from bocb_jax import optim

NAMES = optim.list_optimizers()
SCHEDULE = functools.partial(optim.schedules.warmup_cosine, warmup_steps=2, total_steps=210)
# The tiny nets have directions without any gradient, where SOAP's basis is arbitrary and Shampoo
# amplifies rounding errors.
OPTIONS = {"soap": {"eps": 1e-4, "max_axis": 3}, "shampoo": {"root_eps": 1e-2}}
every_optimizer = pytest.mark.parametrize("name", NAMES)

# Tests that compile for each optimizer use these; the slow run uses all.
CORE = ("sgd", "lamb", "sophia", "muon", "schedule_free_adamw")
core_optimizers = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in CORE else pytest.mark.slow) for n in NAMES]
)


def train_step(optimizer, params, state, count):
    grads = jax.grad(loss_of)(params)
    extra = extra_args(params, jax.random.fold_in(jax.random.key(0), count))
    updates, state = optimizer.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state


def make(name, learning_rate=None, **options):
    rate = learning_rate or optim.optimizer_info(name).default_learning_rate
    return optim.create_optimizer(name, SCHEDULE(rate), **options, **OPTIONS.get(name, {}))


@functools.cache
def compiled(name):
    """Return the optimizer and its compiled init and step, once for all tests; the step donates."""
    optimizer = make(name, weight_decay=None if not optim.optimizer_info(name).decays else 0.01)
    step = jax.jit(functools.partial(train_step, optimizer), donate_argnums=(0, 1))
    return optimizer, jax.jit(optimizer.init), step


def run(name, steps, *, seed=0, start=0, params=None, state=None, **rates):
    _, init, step = compiled(name)
    params = tiny_params(seed) if params is None else params
    state = optim.set_hyperparameters(init(params) if state is None else state, **rates)
    for count in range(start, start + steps):
        params, state = step(params, state, count)
    return params, state


@every_optimizer
def test_row_is_complete(name):
    info = optim.optimizer_info(name)
    assert info.summary.endswith(".")
    assert info.paper
    assert info.reference
    assert info.numeric_class in ("exact", "eps-level", "variant")
    assert info.category in ("a", "b", "c", "d", "later")
    assert info.default_learning_rate > 0


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types_and_structure_are_stable(name, dtype):
    optimizer = make(name)
    params = tiny_params(dtype=dtype)
    state = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(
        lambda p, s: optimizer.update(p, s, p, **extra_args(p, jax.random.key(0))), params, state
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for before, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (before.shape, before.dtype) == (new.shape, new.dtype)


@every_optimizer
def test_state_made_outside_jit_can_be_donated(name):
    params = tiny_params()
    leaves = jax.tree.leaves((params, make(name).init(params)))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@every_optimizer
def test_program_holds_no_rate(name):
    """Two pairs of learning rate and weight decay lower to the same StableHLO."""

    def lowered(rate, decay):
        decay = decay if optim.optimizer_info(name).decays else 0.0
        optimizer = make(name, rate, weight_decay=decay)
        params = tiny_params()
        state = jax.eval_shape(optimizer.init, params)
        step = jax.jit(lambda p, s: optimizer.update(p, s, p, **extra_args(p, jax.random.key(0))))
        return step.lower(params, state).as_text()

    assert lowered(1e-3, 0.1) == lowered(0.25, 0.0)


@every_optimizer
def test_second_step_and_other_rates_compile_nothing(name):
    _, init, step = compiled(name)
    run(name, 1)
    run(name, 2, learning_rate=0.02, **({"weight_decay": 0.3} if has_decay(name) else {}))
    assert step._cache_size() == 1
    assert init._cache_size() == 1


def has_decay(name):
    return bool(optim.optimizer_info(name).decays)


@every_optimizer
def test_resumes_bit_for_bit(name):
    straight = run(name, 6)
    halfway = jax.tree.map(np.array, run(name, 3))
    assert_same(run(name, 3, start=3, params=halfway[0], state=halfway[1]), straight, rtol=0)


@every_optimizer
@pytest.mark.parametrize("dead", ["units", "net"])
def test_tensors_without_any_gradient_stay_finite(name, dead):
    """Kernels of dead units have gradients of exactly zero, here from the first step on."""
    params = tiny_params()
    block = params["blocks"][0]
    block["norm"]["scale"] = jnp.zeros_like(block["norm"]["scale"])
    if dead == "net":
        params["head"]["kernel"] = jnp.zeros_like(params["head"]["kernel"])
    dead_grads = jax.grad(loss_of)(params)
    assert not dead_grads["blocks"][0]["conv"]["kernel"].any()
    params, state = run(name, 3, params=params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))


@every_optimizer
def test_lowers_the_loss(name):
    """At its default learning rate or a multiple: the net is much smaller than real ones."""
    losses = []
    for factor in (1, 10, 100, 0.3):
        rate = factor * optim.optimizer_info(name).default_learning_rate
        decay = {"weight_decay": 1e-6} if has_decay(name) else {}
        params, state = run(name, 200, learning_rate=rate, **decay)
        losses.append(float(loss_of(averaged(name, params, state))))
        if losses[-1] < 0.65 * loss_of(tiny_params()):
            return
    pytest.fail(f"losses {losses} from {loss_of(tiny_params())}")


def averaged(name, params, state):
    """Return the parameters to evaluate, which may differ from those that are trained."""
    evaluation = optim.optimizer_info(name).evaluation_parameters
    return evaluation(state, params) if evaluation else params


@core_optimizers
def test_vmap_over_rates_and_seeds_equals_single_runs(name):
    optimizer, _, _ = compiled(name)
    rates = {"learning_rate": optim.optimizer_info(name).default_learning_rate * jnp.arange(1, 4)}
    if has_decay(name):
        rates["weight_decay"] = jnp.array([0.0, 0.1, 0.02])
    starts = [tiny_params(seed) for seed in range(3)]

    def init(params, rates):
        return optim.set_hyperparameters(optimizer.init(params), **rates)

    params = jax.tree.map(lambda *x: jnp.stack(x), *starts)
    state = jax.jit(jax.vmap(init))(params, rates)
    step = jax.jit(jax.vmap(functools.partial(train_step, optimizer), in_axes=(0, 0, None)))
    for count in range(3):
        params, state = step(params, state, count)
    for i in range(3):
        together = jax.tree.map(lambda x: x[i], params)  # noqa: B023
        alone, _ = run(name, 3, seed=i, **{k: v[i] for k, v in rates.items()})
        assert_same(together, alone, rtol=2e-5, atol=2e-5)


@every_optimizer
def test_vmap_is_possible(name):
    optimizer = make(name)
    batched = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), tiny_params())
    state = jax.eval_shape(jax.vmap(optimizer.init), batched)
    step = jax.vmap(functools.partial(train_step, optimizer), in_axes=(0, 0, None))
    params, after = jax.eval_shape(step, batched, state, 0)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, batched)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


@core_optimizers
def test_gradient_accumulation_equals_one_step_on_the_mean(name):
    """Two halves through optax.MultiSteps give the update of their mean."""
    optimizer, _, _ = compiled(name)
    twice = optax.MultiSteps(optimizer, 2)
    params = tiny_params()
    grads = jax.grad(loss_of)(params)
    extra = {k: v for k, v in extra_args(params, jax.random.key(0)).items() if not callable(v)}
    functions = {k: v for k, v in extra_args(params, jax.random.key(0)).items() if callable(v)}

    @jax.jit
    def halves(params, state):
        for factor in (0.5, 1.5):
            half = jax.tree.map(lambda g: factor * g, grads)  # noqa: B023
            updates, state = twice.update(half, state, params, **extra, **functions)
        return updates

    whole, _ = jax.jit(lambda p, s: optimizer.update(grads, s, p, **extra, **functions))(
        params, optimizer.init(params)
    )
    assert_same(halves(params, twice.init(params)), whole, rtol=1e-4, atol=1e-6)


@core_optimizers
def test_sharded_over_eight_devices_equals_replicated(name):
    """Parameters and state are sharded along the first axis that eight divides."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def sharding(x):
        axis = next((i for i, n in enumerate(x.shape) if n % 8 == 0), None)
        spec = [None] * x.ndim if axis is None else [None] * axis + ["fsdp"]
        return jax.sharding.NamedSharding(mesh, jax.P(*spec))

    shapes = {"mlp": {"kernel": (8, 16), "bias": (16,)}, "embed": (8, 4)}
    draw = np.random.default_rng(0)
    params, grads = (
        jax.tree.map(lambda s: jnp.asarray(draw.standard_normal(s), jnp.float32), shapes,
                     is_leaf=lambda x: isinstance(x, tuple))
        for _ in range(2)
    )  # fmt: skip
    optimizer = make(name)
    extra = {
        "key": jax.random.key(0),
        "value_and_grad_fn": lambda p: (0.0, jax.tree.map(jnp.add, p, grads)),
        "sampled_label_grad_fn": lambda p, key: grads,
    }

    def three_steps(params):
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
        return params, state

    alone = jax.jit(three_steps)(params)
    shardings = jax.tree.map(sharding, jax.eval_shape(three_steps, params))
    split = jax.device_put(params, shardings[0])
    together = jax.jit(three_steps, out_shardings=shardings)(split)
    kernel = together[0]["mlp"]["kernel"]
    assert len(kernel.addressable_shards) == 8
    assert kernel.addressable_shards[0].data.shape == (1, 16)
    assert_same(together, alone, rtol=1e-4, atol=1e-5)


@every_optimizer
def test_weight_decay_touches_exactly_the_masked(name):
    if not has_decay(name):
        pytest.skip("has no weight decay")
    before = jax.tree.map(np.array, run(name, 3, weight_decay=0.0))

    def next_params(weight_decay):
        params, state = before
        return run(name, 1, start=3, params=params, state=state, weight_decay=weight_decay)[0]

    changed = jax.tree.map(lambda a, b: bool((a != b).any()), next_params(0.0), next_params(0.3))
    assert changed == optim.masks.decay_tree(before[0], "matrices", None)
