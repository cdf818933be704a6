"""One matrix for each axis of a tensor: the algebra that Shampoo and SOAP share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Matrices = tuple[jax.Array | None, ...]  # one (size, size) for each axis; None leaves it alone


def has_matrix(shape: tuple[int, ...], max_axis: int) -> tuple[bool, ...]:
    """Return which axes of a tensor get a matrix: none of a vector, else those of 2 to max_axis."""
    return tuple(len(shape) > 1 and 1 < size <= max_axis for size in shape)


def identities(p: jax.Array, max_axis: int) -> Matrices:
    """Return identity matrices for the axes of a tensor."""
    used = has_matrix(p.shape, max_axis)
    return tuple(
        jnp.eye(n, dtype=p.dtype) if use else None for n, use in zip(p.shape, used, strict=True)
    )


def grams(g: jax.Array, max_axis: int) -> Matrices:
    """Return for each axis the (size, size) products of its slices, summed over the other axes."""

    def gram(axis: int) -> jax.Array:
        flat = jnp.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
        return flat @ flat.T

    used = has_matrix(g.shape, max_axis)
    return tuple(gram(axis) if use else None for axis, use in enumerate(used))


def init_matrices(params: optax.Params, max_axis: int) -> tuple[optax.Params, optax.Params]:
    """Return two trees of `Matrices` for each tensor: zeros for the mean grams, and identities."""
    ones = jax.tree.map(lambda p: identities(p, max_axis), params)
    return optax.tree.zeros_like(ones), ones


def update_grams(
    grads: optax.Updates, means: optax.Updates, decay: float, max_axis: int
) -> optax.Updates:
    """Update the moving means of the grams of each tensor."""

    def move(g: jax.Array, old: Matrices) -> Matrices:
        return each(lambda s, new: decay * s + (1 - decay) * new, old, grams(g, max_axis))

    return jax.tree.map(move, grads, means)


def along_axes(g: jax.Array, matrices: Matrices) -> jax.Array:
    """Multiply each axis of a tensor from the left with its matrix."""
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            g = jnp.moveaxis(jnp.tensordot(matrix, g, axes=(1, axis)), 0, axis)
    return g


def each(function: Callable[..., jax.Array], *matrices: Matrices) -> Matrices:
    """Apply a function to the matrix of every axis; axes without one stay without."""
    return tuple(None if m[0] is None else function(*m) for m in zip(*matrices, strict=True))
