"""What every optimizer of the table must do, whatever its mathematics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bocb_jax
from bocb_jax import optim
from bocb_jax.errors import UnknownName, UserError
from bocb_jax.optim import card, cost, landscapes

NAMES = optim.list_optimizers()
SCHEDULE = functools.partial(optim.schedules.warmup_cosine, warmup_steps=2, total_steps=210)
# The tiny nets have directions without any gradient, where SOAP's basis is arbitrary and Shampoo
# amplifies rounding errors.
OPTIONS = {"soap": {"eps": 1e-4, "max_axis": 3}, "shampoo": {"root_eps": 1e-2}}
every_optimizer = pytest.mark.parametrize("name", NAMES)

# What takes a compilation of its own is tested on all in the slow run, otherwise on these.
CORE = ("sgd", "lamb", "sophia", "muon", "schedule_free_adamw")
core_optimizers = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in CORE else pytest.mark.slow) for n in NAMES]
)


def tiny_params(seed=0, dtype=jnp.float32):
    """A convolution kernel, a matrix, a position table and a vector."""
    shapes = {
        "blocks": {0: {"conv": {"kernel": (2, 1, 4, 6)}, "norm": {"scale": (6,)}}},
        "head": {"kernel": (6, 3)},
        "pos_embed": (1, 8),
    }
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    draw = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(0.3 * draw.standard_normal(s), dtype) for s in leaves])


def logits_of(params):
    """A two-layer net on 16 fixed inputs of 8 numbers, as (16, 3) logits."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((16, 8)), jnp.float32)
    block = params["blocks"][0]
    hidden = (x + params["pos_embed"]) @ block["conv"]["kernel"].reshape(8, 6)
    return jnp.tanh(hidden * block["norm"]["scale"][None]) @ params["head"]["kernel"]


def loss_of(params, labels=None):
    labels = jnp.arange(16) % 3 if labels is None else labels
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params), labels).mean()


def hooks(params, key):
    """What the trainer passes to every update, beside the gradient."""

    def sampled_label_grad_fn(params, key):
        labels = jax.random.categorical(key, logits_of(params))
        return jax.grad(loss_of)(params, labels)

    return {
        "value": loss_of(params),
        "key": key,
        "value_and_grad_fn": jax.value_and_grad(loss_of),
        "sampled_label_grad_fn": sampled_label_grad_fn,
    }


def train_step(optimizer, params, state, count):
    grads = jax.grad(loss_of)(params)
    extra = hooks(params, jax.random.fold_in(jax.random.key(0), count))
    updates, state = optimizer.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state


def make(name, learning_rate=None, **options):
    rate = learning_rate or optim.optimizer_info(name).default_learning_rate
    return optim.create_optimizer(name, SCHEDULE(rate), **options, **OPTIONS.get(name, {}))


@functools.cache
def compiled(name):
    """The optimizer, its init and its step, compiled once for all tests; the step donates."""
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


def assert_same(a, b, **tolerance):
    for path, x in jax.tree_util.tree_leaves_with_path(a):
        y = dict(jax.tree_util.tree_leaves_with_path(b))[path]
        np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path), **tolerance)


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
        lambda p, s: optimizer.update(p, s, p, **hooks(p, jax.random.key(0))), params, state
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for before, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (before.shape, before.dtype) == (new.shape, new.dtype)


@every_optimizer
def test_program_holds_no_rate(name):
    """Two learning rates and weight decays lower to the same text."""

    def lowered(rate, decay):
        decay = decay if optim.optimizer_info(name).decays else 0.0
        optimizer = make(name, rate, weight_decay=decay)
        params = tiny_params()
        state = jax.eval_shape(optimizer.init, params)
        step = jax.jit(lambda p, s: optimizer.update(p, s, p, **hooks(p, jax.random.key(0))))
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
def test_lowers_the_loss(name):
    """At its learning rate, or some factor on it: the net is smaller than those it is for."""
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
    """The parameters to evaluate, where they are not those that are trained."""
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
    """Two halves through optax.MultiSteps against their mean in one update."""
    optimizer, _, _ = compiled(name)
    twice = optax.MultiSteps(optimizer, 2)
    params = tiny_params()
    grads = jax.grad(loss_of)(params)
    extra = {k: v for k, v in hooks(params, jax.random.key(0)).items() if not callable(v)}
    functions = {k: v for k, v in hooks(params, jax.random.key(0)).items() if callable(v)}

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
    """Parameters and state are split along the first axis that eight divides."""
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


def test_masks():
    params = tiny_params()
    mask = optim.masks.decay_tree(params, "matrices", None)
    paths = optim.masks.parameter_paths(params)
    chosen = [p for p, m in zip(*map(jax.tree.leaves, (paths, mask)), strict=True) if m]
    assert chosen == ["blocks/0/conv/kernel", "head/kernel"]
    by_pattern = optim.masks.decay_tree(params, ["head/*", "*scale"], None)
    chosen = [p for p, m in zip(*map(jax.tree.leaves, (paths, by_pattern)), strict=True) if m]
    assert chosen == ["blocks/0/norm/scale", "head/kernel"]
    with pytest.raises(UserError, match=r"'tail/\*' matches no parameter"):
        optim.masks.decay_tree(params, ["tail/*"], None)
    with pytest.raises(UserError, match="'matrices', 'all'"):
        optim.masks.decay_tree(params, "matrix", None)
    with pytest.raises(UserError, match="tree like the parameters"):
        optim.masks.decay_tree(params, {"head": True}, None)


def test_kinds_are_told_from_name_and_shape():
    shapes = {
        "stem": {"kernel": (3, 3, 3, 8), "bias": (8,)},
        "mixer": {"kernel": (3, 3, 1, 8)},
        "mlp": {"kernel": (8, 4)},
        "fc": {"kernel": (8, 4)},
        "norm": {"scale": (8,)},
        "gamma": (8,),
        "cls_token": (1, 1, 8),
    }
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))
    assert optim.masks.infer_kinds(params) == {
        "stem": {"kernel": "conv", "bias": "bias"},
        "mixer": {"kernel": "depthwise"},
        "mlp": {"kernel": "matrix"},
        "fc": {"kernel": "head"},
        "norm": {"scale": "norm"},
        "gamma": "vector",
        "cls_token": "embedding",
    }


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_learning_rate_multipliers(name):
    params = tiny_params()
    grads = jax.grad(loss_of)(params)

    def updates(**options):
        optimizer = make(name, 0.1, weight_decay=0.1, **options)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    plain, scaled = updates(), updates(lr_multipliers={"head/*": 0.5, "*kernel": 9.0})
    assert_same(scaled["head"], jax.tree.map(lambda u: 0.5 * u, plain["head"]), rtol=1e-6)
    assert_same(scaled["blocks"][0]["norm"], plain["blocks"][0]["norm"], rtol=0)
    kernel = plain["blocks"][0]["conv"]["kernel"]
    np.testing.assert_allclose(scaled["blocks"][0]["conv"]["kernel"], 9 * kernel, rtol=1e-5)
    with pytest.raises(UserError, match="'tail' matches no parameter"):
        updates(lr_multipliers={"tail": 0.5})


def test_schedules():
    cosine = optim.schedules.warmup_cosine(2.0, 3, 13, end_fraction=0.1)
    np.testing.assert_allclose(cosine(0), 0.5)
    np.testing.assert_allclose(cosine(3), 2.0)
    np.testing.assert_allclose(cosine(8), 2.0 * (0.1 + 0.9 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(cosine(13), 0.2, rtol=1e-6)
    steps = optim.schedules.step_decay(1.0, (10, 20), 0.1)
    np.testing.assert_allclose([steps(c) for c in (9, 10, 20)], [1, 0.1, 0.01], rtol=1e-6)
    assert optim.schedules.constant(1.0) == optim.schedules.constant(1.0)
    with pytest.raises(UserError, match="must exceed warmup_steps"):
        optim.schedules.warmup_cosine(1.0, 10, 10)


def test_optax_schedule_and_logged_rate():
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    optimizer = optim.create_optimizer("sgd", schedule, momentum=0.0, weight_decay=0.0)
    params = {"x": jnp.ones(2)}
    state = optimizer.init(params)
    for rate in (1.0, 0.9, 0.8):
        updates, state = optimizer.update({"x": jnp.ones(2)}, state, params)
        np.testing.assert_allclose(optim.current_learning_rate(state), rate, rtol=1e-6)
        np.testing.assert_allclose(updates["x"], -rate, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adamv"}, "Did you mean adam or radam"),
        ({"learning_rate": -1e-3}, "learning rate must be a positive number, not -0.001"),
        ({"learning_rate": float("nan")}, "learning rate must be a positive number"),
        ({"weight_decay": -1}, "weight decay must be zero or a positive number"),
        ({"b1": 1.0}, r"adamw: b1 is a number in \[0, 1\), not 1.0"),
        ({"b2": "0.9"}, r"adamw: b2 is a number in \[0, 1\), not '0.9'"),
        ({"beta1": 0.9}, "adamw has no hyper-parameter beta1. It has: b1, b2, eps"),
        ({"decay": "l2"}, "adamw has no weight decay of the kind 'l2'; it has 'decoupled'"),
        ({"name": "sgd", "nesterov": 1}, "nesterov is true or false, not 1"),
        ({"name": "muon", "adjust": "best"}, "adjust is one of match_rms_adamw, original"),
        ({"name": "soap", "update_interval": 2.5}, r"is a whole number in \[1, inf\), not 2.5"),
        ({"name": "sam+adamw", "b3": 0.9}, "It has: b1, b2, eps, sam_rho, sam_adaptive"),
        ({"name": "sam+adamw", "sam_rho": 0}, r"sam_rho is a number in \(0, inf\), not 0"),
        ({"name": "clars"}, "There is no optimizer 'clars'"),
        ({"name": "sam+sdg"}, "There is no optimizer 'sdg'. Did you mean"),
        (
            {"name": "adabound", "learning_rate": optax.constant_schedule(0.1)},
            "an Optax schedule does not tell: pass base_learning_rate",
        ),
    ],
)
def test_bad_input_is_refused_when_made(arguments, message):
    with pytest.raises((UserError, UnknownName), match=message):
        optim.create_optimizer(**{"name": "adamw", "learning_rate": 1e-3, **arguments})


@pytest.mark.parametrize(
    "name", ["cnadam", "sam+lion", "sam+cadamw", "lookahead+sam+adan", "lookahead+adafactor"]
)
def test_any_combination_is_found_by_name(name):
    params = tiny_params()
    optimizer = optim.create_optimizer(name, 1e-3)
    updates, _ = jax.eval_shape(
        lambda p, s: optimizer.update(p, s, p, **hooks(p, jax.random.key(0))),
        params,
        jax.eval_shape(optimizer.init, params),
    )
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert optim.optimizer_info(name).name == name


def half_sgd(learning_rate, momentum=0.5):
    """A user's own optimizer, as it is found by import path."""
    return optax.chain(optax.trace(momentum), optax.scale_by_learning_rate(learning_rate / 2))


def test_own_optimizer_by_import_path():
    name = f"{__name__}:half_sgd"
    params = tiny_params()
    grads = jax.grad(loss_of)(params)
    own = optim.create_optimizer(name, 0.2, momentum=0.9)
    sgd = optim.create_optimizer("sgd", 0.1, weight_decay=0.0)
    assert_same(
        own.update(grads, own.init(params), params)[0],
        sgd.update(grads, sgd.init(params), params)[0],
        rtol=1e-6,
    )
    state = optim.set_hyperparameters(own.init(params), learning_rate=0.4)
    assert_same(
        own.update(grads, state, params)[0],
        jax.tree.map(lambda g: -0.2 * g, grads),
        rtol=1e-6,
    )
    with pytest.raises(UserError, match="It has: momentum"):
        optim.create_optimizer(name, 0.2, b1=0.9)
    with pytest.raises(UserError, match="has no weight decay"):
        optim.create_optimizer(name, 0.2, weight_decay=0.1)


def test_optax_optimizer_by_import_path():
    params = tiny_params()
    grads = jax.grad(loss_of)(params)
    theirs = optim.create_optimizer("optax:adamw", 0.1, weight_decay=0.2)
    ours = optim.create_optimizer("adamw", 0.1, weight_decay=0.2)
    assert_same(
        theirs.update(grads, theirs.init(params), params)[0],
        ours.update(grads, ours.init(params), params)[0],
        rtol=1e-6,
    )


def test_public_names():
    assert bocb_jax.create_optimizer is optim.create_optimizer
    assert {"sgd", "adamw", "lamb", "lion"} <= set(bocb_jax.list_optimizers())


def test_matrices_that_are_not_there_are_named():
    params = {"layer": {"w1": jnp.ones((3, 4))}}
    optimizer = optim.create_optimizer("adamw", 1e-3)
    state = optimizer.init(params)
    with pytest.raises(UserError, match=r"finds no matrix among .* such as layer/w1"):
        optimizer.update(params, state, params)
    optimizer = optim.create_optimizer("adamw", 1e-3, weight_decay=0.0)
    optimizer.update(params, optimizer.init(params), params)


@every_optimizer
def test_card(name):
    rows = dict(card.describe(name))
    assert {"what", "category", "paper", "learning rate", "weight decay", "numbers"} <= set(rows)
    assert all(text and "  Args" not in text for text in rows.values())
    for setting in optim.optimizer_info(name).settings:
        assert setting in rows["hyper-parameters"]


def test_state_bytes():
    params = {"kernel": jax.ShapeDtypeStruct((64, 32), jnp.float32)}
    size = 4 * 64 * 32
    assert 0 <= cost.state_bytes(make("adamw"), params) - 2 * size < 64
    assert cost.state_bytes(make("adafactor"), params) < 0.1 * size
    assert cost.state_bytes(make("shampoo"), params) > 2 * size + 2 * 4 * (64**2 + 32**2)


def test_cost_table_times_ours_and_optax_in_turn():
    params = {"kernel": jax.ShapeDtypeStruct((16, 8), jnp.float32)}
    row, other = cost.cost_table(params, ["sgd", "sgdp"], rounds=2, steps=2, against_optax=True)
    assert row.update_seconds > 0
    assert row.optax_ratio > 0
    assert other.optax_ratio is None


def test_paths_over_landscapes_go_down():
    for landscape, (rate, points) in landscapes.paths("adamw", steps=60).items():
        function, start, _ = landscapes.LANDSCAPES[landscape]
        assert points.shape == (61, 2)
        assert rate > 0
        assert function(*points[-1]) < 0.3 * function(*start)
