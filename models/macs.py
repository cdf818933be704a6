"""How much a backbone multiplies: counted from the traced program, without running it."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core


def count_macs(model: nnx.Module, image_size: int) -> int:
    """Multiply-accumulates of convolutions and products for one image in evaluation mode.

    Args:
      model: backbone; a shape-only one from `nnx.eval_shape` will do.
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
        inside = [p for value in equation.params.values() for p in _jaxprs(value)]
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            layout = equation.params["dimension_numbers"].rhs_spec
            per_output = math.prod(kernel) // kernel[layout[0]]
            total += equation.outvars[0].aval.size * per_output
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif equation.primitive.name.startswith("custom_vjp"):
            # A depthwise convolution on a CPU: a product for each tap of the kernel.
            total += sum(_products(each) for each in inside) or sum(map(_macs, inside))
        else:
            total += sum(map(_macs, inside))
    return total


def _products(jaxpr: core.Jaxpr) -> int:
    return sum(
        equation.outvars[0].aval.size
        if equation.primitive.name == "mul"
        else sum(_products(each) for value in equation.params.values() for each in _jaxprs(value))
        for equation in jaxpr.eqns
    )


def _jaxprs(value):
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)
