"""Optimizers by name: masks, schedules, bad input, your own, descriptions and costs."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny_net import assert_same, extra_args, loss_of, tiny_params

import bocb_jax
from bocb_jax import optim, paper
from bocb_jax.__main__ import main
from bocb_jax.bench import optimizers
from bocb_jax.errors import UnknownName, UserError
from bocb_jax.optim import describe, landscapes
from bocb_jax.optim.registry import CATEGORIES
from bocb_jax.paper.categories import to_opt

every_optimizer = pytest.mark.parametrize("name", optim.list_optimizers())


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


def test_kinds_are_inferred_from_name_and_shape():
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
        optimizer = optim.create_optimizer(name, 0.1, weight_decay=0.1, **options)
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
        lambda p, s: optimizer.update(p, s, p, **extra_args(p, jax.random.key(0))),
        params,
        jax.eval_shape(optimizer.init, params),
    )
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert optim.optimizer_info(name).name == name


def half_sgd(learning_rate, momentum=0.5):
    """Build a user's own optimizer, to be found by import path."""
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


def test_a_mask_that_finds_no_matrix_is_refused():
    params = {"layer": {"w1": jnp.ones((3, 4))}}
    optimizer = optim.create_optimizer("adamw", 1e-3)
    state = optimizer.init(params)
    with pytest.raises(UserError, match=r"finds no matrix among .* such as layer/w1"):
        optimizer.update(params, state, params)
    optimizer = optim.create_optimizer("adamw", 1e-3, weight_decay=0.0)
    optimizer.update(params, optimizer.init(params), params)


@every_optimizer
def test_the_description_is_complete(name):
    rows = dict(describe.describe(name))
    assert {"what", "category", "paper", "learning rate", "weight decay", "parity"} <= set(rows)
    assert all(text and "  Args" not in text for text in rows.values())
    for hyperparameter in optim.optimizer_info(name).hyperparameters:
        assert hyperparameter in rows["hyper-parameters"]


def test_a_printed_description_has_a_line_for_each_hyperparameter(capsys):
    assert main(["optimizers", "adamw"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[lines.index("b2 = 0.999  in [0, 1)") + 1] == "eps = 1e-08  in [0, inf)"


def test_a_hyperparameter_that_may_be_none_takes_none():
    optim.create_optimizer("lamb", 1e-3, max_grad_norm=None)
    with pytest.raises(UserError, match="max_grad_norm is a number"):
        optim.create_optimizer("lamb", 1e-3, max_grad_norm=-1)


def test_categories_and_tuned_values_are_the_papers():
    assert list(CATEGORIES) == ["a", "b", "c", "d", "later", "user"]
    for row in paper.rows("hyperparameter_modes"):
        info = optim.optimizer_info(to_opt(row["optimizer"]))
        modes = info.paper_learning_rate, info.paper_weight_decay
        printed = row["modal_lr"], row["modal_wd"]
        assert modes == tuple(tuple(map(float, text.split("|"))) for text in printed), info.name
    for name in ("muon", "sam+sgd", "cadamw"):
        info = optim.optimizer_info(name)
        assert (info.category, info.paper_learning_rate) == ("later", ()), name


def test_state_bytes():
    params = {"kernel": jax.ShapeDtypeStruct((64, 32), jnp.float32)}
    size = 4 * 64 * 32
    assert (
        0 <= optimizers.state_bytes(optim.create_optimizer("adamw", 1e-3), params) - 2 * size < 64
    )
    assert optimizers.state_bytes(optim.create_optimizer("adafactor", 1e-3), params) < 0.1 * size
    assert optimizers.state_bytes(
        optim.create_optimizer("shampoo", 1e-3), params
    ) > 2 * size + 2 * 4 * (64**2 + 32**2)


@every_optimizer
def test_state_is_as_large_as_the_row_says(name):
    info = optim.optimizer_info(name)
    if "for ViT-S" in info.notes:
        pytest.skip("depends on the shapes of the parameters")
    params = {"kernel": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    size = optimizers.state_bytes(optim.create_optimizer(name, 1e-3), params)
    np.testing.assert_allclose(size / 4 / 512**2, info.state_per_parameter, atol=0.01)


def test_costs_are_measured_beside_optax():
    params = {"kernel": jax.ShapeDtypeStruct((16, 8), jnp.float32)}
    row, other = (optimizers.measure(name, params, rounds=2, steps=2) for name in ("sgd", "sgdp"))
    assert row.update_seconds > 0
    assert row.optax_ratio > 0
    assert other.optax_ratio is None


def test_muons_twin_makes_the_same_tensors_orthogonal():
    kinds = {"conv": "conv", "mixing": "depthwise", "dense": "matrix", "head": "head"}
    shapes = {"conv": (3, 3, 4, 8), "mixing": (3, 3, 1, 8), "dense": (8, 6), "head": (6, 5)}
    draw = np.random.default_rng(0).standard_normal
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}  # so that none decays
    grads = {name: jnp.asarray(draw(shape), jnp.float32) for name, shape in shapes.items()}
    ours = optim.create_optimizer("muon", 1e-3, parameter_kinds=kinds)
    changes = [
        optimizer.update(grads, optimizer.init(params), params)[0]
        for optimizer in (ours, optimizers.optax_twin("muon", params, kinds))
    ]
    for name in shapes:  # the lengths are scaled by other rules
        a, b = (np.ravel(change[name]) for change in changes)
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999, name


def test_paths_over_landscapes_go_down():
    for landscape, (rate, points) in landscapes.paths("adamw", steps=60).items():
        function, start, _ = landscapes.LANDSCAPES[landscape]
        assert points.shape == (61, 2)
        assert rate > 0
        assert function(*points[-1]) < 0.3 * function(*start)


def test_the_picture_is_drawn(tmp_path, capsys):
    file = tmp_path / "paths.svg"
    assert main(["optimizers", "sgd", "--plot", str(file)]) == 0
    assert "is drawn" in capsys.readouterr().err
    assert file.read_text().count("<path") > 10


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("sgd", "paths.txt", "its suffix be one of"),
        ("sgd", "nowhere/paths.png", "its folder must exist"),
        ("sdg", "paths.png", "There is no optimizer 'sdg'"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_reported(tmp_path, capsys, name, file, message):
    assert main(["optimizers", name, "--plot", str(tmp_path / file)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_missing_matplotlib_is_reported(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["optimizers", "--plot", "paths.png"]) == 2
    assert "pip install" in capsys.readouterr().err
