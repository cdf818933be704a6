"""The forms that are taken on CPUs are faster than XLA's own, in one process and as a ratio."""

import statistics
import time

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from bocb_jax.models import layers, resampling
from bocb_jax.models.convolution import conv, xla_conv

ROUNDS = 7


def _draw(*shapes):
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def _convs(batch, side, features, out, window, *, stride=1, pad=0, groups=1):
    """Return (B, side, side, features) and a kernel, and both forms of their convolution."""
    padding = ((pad, pad), (pad, pad))
    arrays = _draw((batch, side, side, features), (window, window, features // groups, out))
    strides = (stride, stride)
    return (
        arrays,
        lambda x, k: conv(x, k, strides=strides, padding=padding, groups=groups),
        lambda x, k: xla_conv(x, k, strides, padding, (1, 1), groups),
    )


def _pools(batch, side, features, window, stride, pad):
    def theirs(x):
        return resampling._xla_max_pool(x, (window,) * 2, (stride,) * 2, (pad,) * 2)

    return (
        _draw((batch, side, side, features)),
        lambda x: resampling.max_pool(x, window, stride, pad),
        theirs,
    )


def _dense(batch, tokens, features, out):
    """Return the forms of a dense layer followed by GELU, as an MLP has it."""
    ours = layers.Linear(features, out, rngs=nnx.Rngs(0))
    theirs = nnx.Linear(features, out, rngs=nnx.Rngs(0))
    nets = [nnx.split(net) for net in (ours, theirs)]
    return (
        [*_draw((batch, tokens, features)), nnx.to_pure_dict(nets[0][1])],
        lambda x, w: layers.gelu(nnx.merge(nets[0][0], w)(x)),
        lambda x, w: jax.nn.gelu(nnx.merge(nets[1][0], w)(x), approximate=False),
    )


# Shapes at which the form is ahead by so much that a busy machine does not hide it.
FORMS = {
    "patches 4x4": lambda: _convs(8, 64, 3, 96, 4, stride=4),
    "depthwise 3x3": lambda: _convs(8, 32, 96, 96, 3, pad=1, groups=96),
    "depthwise 7x7": lambda: _convs(4, 28, 96, 96, 7, pad=3, groups=96),
    "max pooling 3x3/2": lambda: _pools(8, 56, 64, 3, 2, 1),
    "dense and GELU": lambda: _dense(32, 65, 64, 256),
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the forms are those for CPUs")
@pytest.mark.parametrize("form", FORMS)
def test_forward_and_gradient_take_no_longer_than_xlas(form):
    arrays, *sides = FORMS[form]()
    ours, theirs = (_compiled(side, arrays) for side in sides)
    ratios = []
    for _ in range(ROUNDS):  # in turn, so that both meet what else the machine does
        seconds = [_seconds(step, arrays) for step in (ours, theirs)]
        ratios.append(seconds[1] / seconds[0])
    assert statistics.median(ratios) > 1, ratios


def _compiled(function, arrays):
    """Return the gradient of a function's squares with respect to all of its arrays, compiled."""
    step = jax.jit(
        jax.grad(lambda *a: jnp.square(function(*a)).sum(), argnums=tuple(range(len(arrays))))
    )
    return step.lower(*arrays).compile()


def _seconds(step, arrays):
    began = time.perf_counter()
    jax.block_until_ready([step(*arrays) for _ in range(3)])
    return time.perf_counter() - began
