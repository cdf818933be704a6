"""Gradients in float32 of layers in bfloat16: exact to float32, for every backbone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bocb_jax import list_models
from bocb_jax.build import build_passes, program_spec
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.data.registry import open_dataset
from bocb_jax.engine.gradient_sums import in_float32
from bocb_jax.engine.passes import _split, weights_of
from bocb_jax.engine.sharding import make_mesh
from bocb_jax.models import platform
from bocb_jax.preflight.__main__ import run_config
from bocb_jax.preflight.check import compile_run
from bocb_jax.resolve import resolve
from bocb_jax.roofline.topology import open_topology

HALF = jnp.bfloat16


def product(weights, x):
    return x.reshape(-1, 8).astype(HALF) @ weights["a"].astype(HALF)


def convolution(weights, x):
    kernel = weights["a"].reshape(1, 1, 8, 8).astype(HALF)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x.reshape(-1, 4, 4, 8).astype(HALF), kernel, (1, 1), "SAME", dimension_numbers=dimensions
    )


def bias(weights, x):
    return x.reshape(-1, 8, 8).astype(HALF) + weights["a"].astype(HALF)[None]


def twice(weights, x):
    half = weights["a"].astype(HALF)
    x = x.reshape(-1, 8).astype(HALF)
    return jnp.concatenate([x @ half, (2 * x) @ half.T])


@pytest.mark.parametrize("layer", [product, convolution, bias, twice])
def test_a_gradient_is_exact_to_float32(layer):
    """Its operands are bfloat16 numbers, whose products float32 holds exactly."""
    draw = np.random.default_rng(0)
    weights = {"a": jnp.asarray(draw.normal(size=(8, 8)), jnp.float32)}
    x = jnp.asarray(draw.normal(size=(512, 8)), HALF).astype(jnp.float32)
    pull = jnp.asarray(draw.normal(size=jax.eval_shape(layer, weights, x).shape), HALF)

    def loss(weights, x):
        y = layer(weights, x)
        return jnp.sum((y * pull).astype(jnp.float32)), y

    plain = jax.value_and_grad(loss, has_aux=True)
    (value, y), found = jax.jit(in_float32(plain))(weights, x)
    (expected, same), rounded = jax.jit(plain)(weights, x)
    assert value == expected
    np.testing.assert_array_equal(y, same)
    with jax.enable_x64(True):
        wide = functools.partial(jnp.asarray, dtype=jnp.float64)

        def linear(weights):
            return jnp.sum(LAYERS[layer](weights, wide(x)) * wide(pull))

        exact = np.asarray(jax.grad(linear)(wide(weights["a"])))
    size = np.abs(exact).max()
    # 512 terms, and as many roundings at most; the other gradient is rounded to 8 bits at the end.
    assert np.abs(np.asarray(found["a"]) - exact).max() < 512 * 2**-24 * size * 4
    if layer is not convolution:  # which CPUs compute in float32
        assert np.abs(np.asarray(rounded["a"]) - exact).max() > 2**-12 * size
    assert found["a"].dtype == jnp.float32


LAYERS = {
    product: lambda w, x: x.reshape(-1, 8) @ w,
    convolution: lambda w, x: jnp.einsum("bhwi,io->bhwo", x.reshape(-1, 4, 4, 8), w),
    bias: lambda w, x: x.reshape(-1, 8, 8) + w[None],
    twice: lambda w, x: jnp.concatenate([x.reshape(-1, 8) @ w, 2 * x.reshape(-1, 8) @ w.T]),
}


def passes_of(model, devices=1, **step):
    settings = {"model": model, "precision": "bfloat16", "batch_size": 8, "image_size": 32}
    config = from_dict(TrainConfig, {**settings, "step": step})
    dataset = open_dataset("digits")
    spec = program_spec(config, resolve(config, dataset), dataset, 10)
    return build_passes(spec, make_mesh(devices=devices))


def traced(passes):
    """Return the program of a loss and its gradients, and the names of the parameters."""
    weights = weights_of(passes.abstract_model)
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)

    def gradient(params, model_state, images):
        targets = jnp.zeros(8, jnp.int32)
        parts = _split(images, targets, jax.random.key(0), 1)
        part = jax.tree.map(lambda x: x[0], parts)
        return passes._value_and_grad(params, model_state, part)[1]

    jaxpr = jax.make_jaxpr(gradient)(weights["params"], weights["model_state"], images)
    names = jax.tree_util.tree_leaves_with_path(weights["params"])
    return jaxpr.jaxpr, [jax.tree_util.keystr(path) for path, _ in names]


MOVES = {
    "convert_element_type", "reshape", "transpose", "squeeze", "broadcast_in_dim", "rev", "slice",
    "pad", "concatenate", "neg", "mul",
}  # fmt: skip


def last_sums(jaxpr, var):
    """Yield the equations of the last sums behind a value."""
    made_by = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    equation = made_by.get(var) if not hasattr(var, "val") else None
    if equation is None:
        return
    if equation.primitive.name in {*MOVES, "add_any"}:
        for operand in equation.invars:
            yield from last_sums(jaxpr, operand)
    else:
        yield equation


QUICK = ("vit_mini", "resnet_mini", "convnext_mini")


@pytest.mark.parametrize(
    "model",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in list_models("*_mini")
    ],
)
def test_the_last_sum_of_every_gradient_of_a_backbone_is_float32(model):
    with platform.tracing_for("tpu"):  # CPUs, which have forms of their own, are for float32
        jaxpr, names = traced(passes_of(model, reduce_dtype="float32"))
    found = {
        name: equation.primitive.name
        for name, var in zip(names, jaxpr.outvars, strict=True)
        for equation in last_sums(jaxpr, var)
        if equation.outvars[0].aval.dtype == HALF
    }
    assert not found


def test_without_the_setting_layers_decide():
    jaxpr, _ = traced(passes_of("vit_mini"))
    last = [equation for var in jaxpr.outvars for equation in last_sums(jaxpr, var)]
    assert any(equation.outvars[0].aval.dtype == HALF for equation in last)


def test_runs_in_float32_have_the_same_program_with_the_setting():
    config = {"model": "vit_mini", "precision": "float32"}
    dataset = open_dataset("digits")
    specs = set()
    for step in ({}, {"reduce_dtype": "float32"}):
        given = from_dict(TrainConfig, {**config, "step": step})
        specs.add(program_spec(given, resolve(given, dataset), dataset, 10))
    assert len(specs) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ([], "bf16"),
        (["--step.reduce-dtype", "float32"], "f32"),
        (["--step.accumulate", "4"], "f32"),
    ],
)
def test_a_tpu_sums_once_a_step_in_the_type_that_was_asked_for(settings, dtype):
    pytest.importorskip("libtpu")
    run = ["--model", "vit_mini", "--dataset", "digits", "--opt", "adamw", "--batch-size", "64"]
    check = compile_run(run_config([*run, *settings]), open_topology("v5e:2x2"))
    sums = [t for t in check.cost.collectives if t.kind == "all-reduce" and t.bytes > 64]
    assert {t.dtype for t in sums} == {dtype}
    assert {t.times for t in sums} == {1}
    width = {"bf16": 2, "f32": 4}[dtype]
    # The metrics of a step, a few bytes, are left out.
    assert sum(t.bytes for t in sums) == pytest.approx(width * check.num_params, rel=1e-3)
