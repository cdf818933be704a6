"""The cost of a backbone's forward pass, counted from its jaxpr without running it."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core


def count_macs(model: nnx.Module, image_size: int) -> int:
    """Return the multiply-accumulates of convolutions and products for one image.

    The model is traced in evaluation mode.

    Args:
      model: backbone; one of shapes only, from `nnx.eval_shape`, will do.
      image_size: side in pixels.
    """
    view = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graph, state = nnx.split(view)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda state, image: nnx.merge(graph, state)(image))(state, image)
    return _macs(traced.jaxpr)


def _macs(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = list(_inner_jaxprs(equation))
        if equation.primitive.name == "conv_general_dilated":
            kernel = _shape(equation.invars[1])
            layout = equation.params["dimension_numbers"].rhs_spec
            per_output = math.prod(kernel) // kernel[layout[0]]
            total += _size(equation.outvars[0]) * per_output
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = _shape(equation.invars[0])
            total += _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)
        elif equation.primitive.name.startswith("custom_vjp"):
            # A depthwise convolution on a CPU has no product, but a multiplication per tap.
            total += sum(map(_multiplications, inner)) or sum(map(_macs, inner))
        else:
            total += sum(map(_macs, inner))
    return total


def _multiplications(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "mul":
            total += _size(equation.outvars[0])
        else:
            total += sum(map(_multiplications, _inner_jaxprs(equation)))
    return total


def _inner_jaxprs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """Yield the jaxprs among the parameters of an equation, such as the body of a loop."""
    for value in equation.params.values():
        yield from _jaxprs(value)


def _jaxprs(value: Any) -> Iterator[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape


def _size(var: Any) -> int:
    return var.aval.size
