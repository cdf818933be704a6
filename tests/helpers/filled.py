"""Backbones with weights drawn by NumPy: built many times faster than initialized ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bocb_jax
from bocb_jax import torch_weights
from bocb_jax.models.parameters import count_params
from bocb_jax.paper import taxonomy

# The 21 backbones of the benchmark.
PAPER = list(taxonomy.backbones())


def abstract(name, num_classes, image_size, **overrides):
    """Return a model of shapes, without values."""
    return nnx.eval_shape(
        lambda: bocb_jax.create_model(
            name, num_classes=num_classes, image_size=image_size, rngs=nnx.Rngs(0), **overrides
        )
    )


def build(name, *, num_classes=10, image_size=32, seed=0, **overrides):
    """Return a model with all values drawn by NumPy, at the scale of a trained model's."""
    return with_values(abstract(name, num_classes, image_size, **overrides), seed)


def with_values(model, seed=0):
    """Return a model of shapes with all values drawn by NumPy, as `build` draws them."""
    graph, state = nnx.split(model)
    random = np.random.default_rng(seed)

    def fill(path, variable):
        z = random.standard_normal(variable.shape)
        if variable.ndim > 1:
            fan_in = np.prod(variable.shape[:-1])
            value = z / np.sqrt(fan_in)
        elif path[-1] in ("scale", "gamma", "var"):
            value = 1 + 0.2 * np.abs(z)
        else:
            value = 0.1 * z
        return variable.replace(jnp.asarray(value, jnp.float32))

    return nnx.merge(graph, nnx.map_state(fill, state))


def images(batch=2, size=32, seed=0):
    """Return standard normal images (batch, size, size, 3)."""
    z = np.random.default_rng(seed).standard_normal((batch, size, size, 3))
    return jnp.asarray(z, jnp.float32)


def run(model, x, *, dropout=None, method="__call__"):
    """Return a method's output for `x` as NumPy arrays, compiled, in the model's current mode."""
    graph, state = nnx.split(model)

    @jax.jit
    def apply(state, x):
        rngs = None if dropout is None else nnx.Rngs(dropout=dropout)
        return getattr(nnx.merge(graph, state), method)(x, rngs=rngs)

    return jax.tree.map(np.asarray, apply(state, x))


def counts(name, image_size=224, **overrides):
    """Return the parameter counts at 100 and at 1000 classes, without allocating any."""
    return tuple(
        count_params(abstract(name, classes, image_size, **overrides)) for classes in (100, 1000)
    )


def torch_shapes(model):
    """Return the shape of each entry of a model's PyTorch state dict, by name."""
    shapes = {}
    for path, variable in torch_weights.variables(model):
        *window, features, out = variable.shape if path[-1] == "kernel" else (0, 0)
        shape = (out, features, *window) if path[-1] == "kernel" else variable.shape
        shapes[torch_weights.torch_name(model, path, variable)] = shape
    return shapes


def feature_shapes(name, image_size, **overrides):
    """Return the shapes of the stage maps of a batch of two, without computing them."""
    graph, state = nnx.split(abstract(name, 10, image_size, **overrides))
    x = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    maps = jax.eval_shape(lambda state, x: nnx.merge(graph, state).features(x), state, x)
    return [m.shape for m in maps]


def count_cases(table, fast):
    """Return the rows of a table of counts as test parameters; all but the `fast` ones are slow."""
    return [
        pytest.param(name, *counts, marks=() if name in fast else pytest.mark.slow)
        for name, counts in table.items()
    ]
