"""The mathematics of optimizers takes numbers and functions; the context is for builders alone."""

import ast
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny_net import assert_same, loss_of, tiny_params

import bocb_jax.optim
from bocb_jax.optim.context import Context
from bocb_jax.optim.lamb import scale_by_trust_ratio
from bocb_jax.optim.muon import scale_by_muon
from bocb_jax.optim.registry import OPTIMIZERS

ROOM = Path(bocb_jax.optim.__file__).parent
# Files whose purpose is to make the context or to hand it on.
COMPOSERS = {"context.py", "registry.py", "wrappers.py"}


def functions(of_builders: bool) -> dict[str, ast.FunctionDef]:
    """Return the builders, or all other functions, of the files that hold mathematics."""
    found = {}
    for path in sorted(ROOM.glob("*.py")):
        if path.name in COMPOSERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                is_builder = any("add_row" in ast.unparse(d) for d in node.decorator_list)
                if is_builder == of_builders:
                    found[f"{path.name}:{node.lineno}:{node.name}"] = node
    return found


def arguments(node: ast.FunctionDef) -> list[ast.arg]:
    a = node.args
    extra = [x for x in (a.vararg, a.kwarg) if x is not None]
    found = [*a.posonlyargs, *a.args, *a.kwonlyargs, *extra]
    return [x for x in found if x.arg not in ("self", "cls")]


def test_builders_take_the_context_and_hyperparameters_by_keyword():
    builders = functions(of_builders=True)
    assert len(builders) > 30
    for name, node in builders.items():
        assert [ast.unparse(a) for a in node.args.args] == ["ctx: Context"], name
        assert ast.unparse(node.returns) == "optax.GradientTransformation", name


def test_nothing_else_takes_the_context():
    """Neither annotated nor under its name, nor hidden behind a missing annotation."""
    others = functions(of_builders=False)
    assert sum(":scale_by_" in name for name in others) > 15
    for name, node in others.items():
        for argument in arguments(node):
            assert argument.annotation is not None, f"{name}: {argument.arg}"
            assert argument.arg != "ctx", name
            assert "Context" not in ast.unparse(argument.annotation), name


def mathematics() -> dict[str, Callable[..., Any]]:
    """Return every function `scale_by_*` of the room."""
    modules = {inspect.getmodule(OPTIMIZERS.get(name).build) for name in OPTIMIZERS}
    return {
        f"{module.__name__}.{name}": function
        for module in modules
        for name, function in vars(module).items()
        if name.startswith("scale_by_")
    }


def is_plain(hint: Any) -> bool:
    """Is it a number, an array, a choice, a function, or one of these or None?"""
    if typing.get_origin(hint) is typing.Literal or hint in (int, float, bool, type(None)):
        return True
    if hint is jax.Array or typing.get_origin(hint) is Callable:
        return True
    parts = typing.get_args(hint)
    return bool(parts) and all(map(is_plain, parts))


@pytest.mark.parametrize("name", sorted(mathematics()))
def test_the_mathematics_takes_numbers_and_functions(name):
    for argument in inspect.signature(mathematics()[name]).parameters.values():
        assert is_plain(argument.annotation), argument
    assert not is_plain(Context)
    assert not is_plain(Any)


def test_the_mathematics_composes_with_optax_alone():
    """LAMB from Optax's parts and our trust ratio, and Muon from one function of the kinds."""
    params = tiny_params()
    grads = jax.grad(loss_of)(params)
    lamb = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(eps=1e-6),
        optax.add_decayed_weights(0.05),
        scale_by_trust_ratio(0.05, lambda p: jax.tree.map(lambda _: True, p), always_adapt=False),
        optax.scale_by_learning_rate(0.01),
    )
    ours = bocb_jax.create_optimizer("lamb", 0.01, weight_decay=0.05, decay_mask="all")
    expected, _ = ours.update(grads, ours.init(params), params)
    assert_same(lamb.update(grads, lamb.init(params), params)[0], expected, rtol=1e-5, atol=1e-8)

    muon = scale_by_muon(
        lambda p: jax.tree.map(lambda x: "matrix" if x.ndim == 2 else "vector", p),
        momentum=0.9, nesterov=False, ns_steps=12, adjust="original", b1=0.9, b2=0.95, eps=1e-8,
    )  # fmt: skip
    matrix = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.float32)}
    update, _ = muon.update(matrix, muon.init(matrix))
    # 0.7 to 1.2 is where the quintic iteration leaves singular values.
    values = np.linalg.svd(update["w"], compute_uv=False)
    assert values.min() > 0.65
    assert values.max() < 1.25


@pytest.mark.parametrize("name", ["adafactor", "adafactor@openmixup"])
def test_rows_and_columns_without_a_gradient_do_not_move(name):
    # As of a 3x3 kernel on a map of one cell: its second moments would underflow.
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 2))}}
    gradient = np.zeros((3, 3, 2, 2), np.float32)
    gradient[1, 1] = 0.1
    optimizer = bocb_jax.optim.create_optimizer(name, 1e-3, weight_decay=0.0)
    updates, _ = optimizer.update(
        {"conv": {"kernel": jnp.asarray(gradient)}}, optimizer.init(params), params
    )
    moved = np.asarray(updates["conv"]["kernel"])
    assert np.isfinite(moved).all()
    assert moved[1, 1].all()
    assert not moved[0].any()
