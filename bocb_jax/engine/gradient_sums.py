"""Gradients that are summed in float32, of layers that compute in bfloat16.

A layer casts its weights to bfloat16. Its backward pass gives their gradient in bfloat16, and that
of the cast makes it float32. Where a batch is split over devices, the compiler sums the parts where
they arise, before the cast: in bfloat16. Here the last sum of each such gradient (a matrix product,
a convolution, a bias's sum over the batch) returns float32 instead, in which it accumulates anyway.
The sums over devices and over parts of the batch are then in float32 too.

This rewrites the traced program (https://docs.jax.dev/en/latest/jaxpr.html), since the type of a
cotangent is not for a layer to choose; so it holds for any backbone. A gradient that ends in an
operation that is not listed here, such as a loop, keeps its type.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

Value = TypeVar("Value")
Atom = Var | Literal

# Operations that take a type for their result, and accumulate in float32 whatever it is.
_PRODUCTS = {"dot_general", "conv_general_dilated"}
# Operations whose result has the type of their operands, and that round nothing.
_MOVES = {
    "broadcast_in_dim", "concatenate", "copy", "neg", "pad", "reshape", "rev", "select_n", "slice",
    "squeeze", "transpose",
}  # fmt: skip
_ARITHMETIC = {"add_any", "mul"}  # of several uses of a weight, or of a scaled one


def in_float32(
    value_and_grad: Callable[..., tuple[Value, Any]],
) -> Callable[..., tuple[Value, Any]]:
    """Return a function of `jax.value_and_grad` whose gradients are float32 before they are summed.

    Its values stay the same to the bit.
    """

    def with_wide_gradients(*args: Any) -> tuple[Value, Any]:
        closed, shapes = jax.make_jaxpr(value_and_grad, return_shape=True)(*args)
        grads = len(jax.tree.leaves(shapes[1]))
        widened = closed.replace(jaxpr=_widened(closed.jaxpr, grads))
        found = jaxpr_as_fun(widened)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return with_wide_gradients


def _widened(jaxpr: Jaxpr, last: int) -> Jaxpr:
    """Return a program whose last results are computed in float32 from their last sum on."""
    program = _Program(jaxpr)
    values, grads = jaxpr.outvars[:-last], jaxpr.outvars[-last:]
    outvars = [*values, *(program.wide(grad) for grad in grads)]
    return jaxpr.replace(eqns=program.equations, outvars=outvars)


class _Program:
    """A traced program that grows by what computes results in float32.

    Attributes:
      equations: of the program, and those that were added.
    """

    def __init__(self, jaxpr: Jaxpr):
        self.equations: list[JaxprEqn] = list(jaxpr.eqns)
        self._made_by = {var: equation for equation in jaxpr.eqns for var in equation.outvars}
        self._wide: dict[Var, Atom] = {}

    def wide(self, atom: Atom) -> Atom:
        """Return a value in float32 that is not rounded after its last sum, if that can be."""
        if isinstance(atom, Literal) or not jnp.issubdtype(_type(atom).dtype, jnp.floating):
            return self._cast(atom)
        if atom not in self._wide:
            self._wide[atom] = self._find(atom)
        return self._wide[atom]

    def _find(self, var: Var) -> Atom:
        equation = self._made_by.get(var)
        is_wide = _type(var).dtype == jnp.float32
        if equation is None:
            return self._cast(var)
        name = equation.primitive.name
        if name == "convert_element_type" and _is_float(equation.invars[0]):
            return self.wide(equation.invars[0])
        if name in _MOVES or (name == "add_any" and is_wide):
            return self._again(equation, [self.wide(operand) for operand in equation.invars])
        if is_wide:
            return self._cast(var)
        if name in _PRODUCTS:
            wider = {"preferred_element_type": jnp.dtype(jnp.float32)}
            return self._again(equation, equation.invars, wider)
        if name in _ARITHMETIC:
            return self._again(equation, [self.wide(operand) for operand in equation.invars])
        if name == "reduce_sum":
            operand = equation.invars[0]
            # What is added up may be needed in its own type as well: only its sums are widened.
            before = self.wide(operand) if self._is_sum(operand) else self._cast(operand)
            return self._again(equation, [before])
        return self._cast(var)

    def _is_sum(self, atom: Atom) -> bool:
        """Return whether a value is a sum, but for its shape."""
        equation = None if isinstance(atom, Literal) else self._made_by.get(atom)
        if equation is not None and equation.primitive.name in ("reshape", "transpose", "squeeze"):
            return self._is_sum(equation.invars[0])
        return equation is not None and equation.primitive.name == "reduce_sum"

    def _again(
        self, equation: JaxprEqn, operands: list[Atom], changed: dict[str, Any] | None = None
    ) -> Var:
        """Add an equation with other operands, whose result is float32."""
        (old,) = equation.outvars
        new = Var(_type(old).update(dtype=jnp.dtype(jnp.float32), weak_type=False))
        params = {**equation.params, **(changed or {})}
        self.equations.append(equation.replace(invars=operands, outvars=[new], params=params))
        return new

    def _cast(self, atom: Atom) -> Atom:
        """Return a float in float32; another value as it is."""
        if not _is_float(atom) or _type(atom).dtype == jnp.float32:
            return atom
        shape = jax.ShapeDtypeStruct(_type(atom).shape, _type(atom).dtype)
        cast = jax.make_jaxpr(lambda x: lax.convert_element_type(x, jnp.float32))(shape)
        (equation,) = cast.jaxpr.eqns
        return self._again(equation, [atom])


def _type(atom: Atom) -> Any:
    """Return shape and dtype of a value; JAX declares no more than an abstract value."""
    return atom.aval


def _is_float(atom: Atom) -> bool:
    return jnp.issubdtype(_type(atom).dtype, jnp.floating)
