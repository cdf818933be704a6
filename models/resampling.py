"""Maps (batch, h, w, c) of another size: pooling and resizing, as PyTorch does them."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """(v, v) of a number, or the two numbers given."""
    return (value, value) if isinstance(value, int) else tuple(value)


def max_pool(x, window, strides=None, padding=0):
    """Maximum over windows of (batch, h, w, c); `strides` defaults to the window, as in PyTorch.

    The gradient goes to the first maximum of a window. On a CPU it is written out, as XLA's own
    takes 4 to 8 times as long; it can be differentiated again, but has no forward-mode derivative
    itself.
    """
    window, strides, padding = pair(window), pair(strides or window), pair(padding)
    if jax.default_backend() == "cpu" and jnp.issubdtype(x.dtype, jnp.floating):
        return _max_pool_on_cpu(x, window, strides, padding, x.shape[1:3])
    return _max_pool(x, window, strides, padding)


def _max_pool(x, window, strides, padding):
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return _reduce_window(x, lowest, jax.lax.max, window, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool_on_cpu(x, window, strides, padding, size):
    del size  # of x, which the gradient has to have
    return _max_pool(x, window, strides, padding)


def _max_pool_forward(x, window, strides, padding, size):
    """Also which pixel of every window is its first maximum."""
    del size
    y = _max_pool(x, window, strides, padding)
    pads = ((0, 0), *((p, p) for p in padding), (0, 0))
    padded = jnp.pad(x, pads, constant_values=-jnp.inf)
    first = jnp.zeros(y.shape, jnp.int8 if math.prod(window) < 128 else jnp.int32)
    for number, tap in reversed(list(enumerate(np.ndindex(window)))):
        rows, columns = (
            slice(t, t + s * (n - 1) + 1, s)
            for t, s, n in zip(tap, strides, y.shape[1:3], strict=True)
        )
        first = jnp.where(padded[:, rows, columns] == y, number, first)
    return y, first


def _max_pool_backward(window, strides, padding, size, first, grad):
    """Pixels that lie alike between the strides are a map each; then these are interleaved."""
    cells = [-(-(n + p) // s) for n, p, s in zip(size, padding, strides, strict=True)]
    zero = jnp.zeros((), grad.dtype)
    none = jnp.zeros((len(grad), *cells, grad.shape[-1]), jnp.promote_types(grad.dtype, "float32"))
    maps = dict.fromkeys(np.ndindex(strides), none)
    for number, tap in enumerate(np.ndindex(window)):
        (down, row), (right, column) = map(divmod, tap, strides)
        part = jnp.where(first == number, grad, zero)
        pads = [
            (shift, n - m - shift, 0)
            for shift, n, m in zip((down, right), cells, grad.shape[1:3], strict=True)
        ]
        maps[row, column] += jax.lax.pad(part, zero, [(0, 0, 0), *pads, (0, 0, 0)])
    maps = jnp.stack(list(maps.values()), -2).reshape(*grad.shape[:1], *cells, *strides, -1)
    maps = maps.transpose(0, 1, 3, 2, 4, 5)
    whole = maps.reshape(len(grad), cells[0] * strides[0], cells[1] * strides[1], -1)
    (top, left), (height, width) = padding, size
    return (whole[:, top : top + height, left : left + width].astype(grad.dtype),)


_max_pool_on_cpu.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(x, window, strides=None, padding=0, *, count_include_pad=True):
    """Mean over windows of (batch, h, w, c); `strides` defaults to the window, as in PyTorch.

    Args:
      x: maps.
      window: side, or (height, width).
      strides: step, or (vertical, horizontal).
      padding: zeros on every side, or (vertical, horizontal).
      count_include_pad: divide by the window's size; if False, by the pixels inside the image.
    """
    total = _reduce_window(x, 0.0, jax.lax.add, window, strides, padding)
    if count_include_pad:
        return total / math.prod(pair(window))
    counts = [
        [min(start + k, size) - max(start, 0) for start in range(-p, size + p - k + 1, s)]
        for k, s, p, size in zip(
            pair(window), pair(strides or window), pair(padding), x.shape[1:3], strict=True
        )
    ]
    inside = np.outer(*counts)[None, :, :, None]
    return total / jnp.asarray(inside, x.dtype)


def _reduce_window(x, start, combine, window, strides, padding):
    padding = ((0, 0), *((p, p) for p in pair(padding)), (0, 0))
    return jax.lax.reduce_window(
        x,
        np.asarray(start, x.dtype),
        combine,
        (1, *pair(window), 1),
        (1, *pair(strides or window), 1),
        padding,
    )


def adaptive_avg_pool(x: jax.Array, output_size: int | Sequence[int]) -> jax.Array:
    """Means over a grid of `output_size` cells that overlap where the size does not divide."""
    return _resample(x, pair(output_size), _cell_means)


def global_average_pool(x: jax.Array) -> jax.Array:
    """(batch, h, w, c) -> (batch, c)."""
    return x.mean((1, 2))


def resize_bicubic(x: jax.Array, size: int | Sequence[int], *, antialias: bool = True) -> jax.Array:
    """Bicubic resize of (batch, h, w, c), as `torch.nn.functional.interpolate` does it.

    Args:
      x: maps.
      size: new side, or (height, width).
      antialias: PyTorch's flag. It changes the spline too: a = -0.5 with it, -0.75 without.
    """
    return _resample(x, pair(size), functools.partial(_cubic_weights, antialias=antialias))


def resize_position_embedding(
    embedding: jax.Array, size: int | Sequence[int], *, prefix_tokens: int = 0
) -> jax.Array:
    """Absolute position embedding (1, prefix + h * w, c) of a square grid, for another grid.

    Args:
      embedding: learned at one size.
      size: new grid, side or (height, width).
      prefix_tokens: leading tokens, such as the class token, that have no place on the grid.
    """
    size = pair(size)
    prefix, grid = embedding[:, :prefix_tokens], embedding[:, prefix_tokens:]
    side = math.isqrt(grid.shape[1])
    if (side, side) == size:
        return embedding
    grid = grid.reshape(1, side, side, -1)
    grid = resize_bicubic(grid, size).reshape(1, size[0] * size[1], -1)
    return jnp.concatenate([prefix, grid], axis=1)


def _resample(x, size, weights):
    """Applies one weight matrix (out, in) along the rows and one along the columns."""
    for axis, equation in ((1, "oh,bhwc->bowc"), (2, "ow,bhwc->bhoc")):
        old, new = x.shape[axis], size[axis - 1]
        if old != new:
            matrix = jnp.asarray(weights(old, new), x.dtype)
            x = jnp.einsum(equation, matrix, x, precision="highest")
    return x


def _cell_means(old, new):
    matrix = np.zeros((new, old))
    for i in range(new):
        start, stop = i * old // new, -(-(i + 1) * old // new)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def _cubic_weights(old, new, antialias):
    a = -0.5 if antialias else -0.75
    stretch = max(old / new, 1.0) if antialias else 1.0
    matrix = np.zeros((new, old))
    for i in range(new):
        center = (i + 0.5) * old / new - 0.5
        reach = math.ceil(2 * stretch)
        for j in range(math.floor(center) - reach, math.floor(center) + reach + 2):
            t = abs(j - center) / stretch
            if t < 1:
                weight = (a + 2) * t**3 - (a + 3) * t**2 + 1
            elif t < 2:
                weight = a * (t**3 - 5 * t**2 + 8 * t - 4)
            else:
                continue
            if not antialias:  # the border pixel repeats
                matrix[i, min(max(j, 0), old - 1)] += weight
            elif 0 <= j < old:
                matrix[i, j] += weight
    return matrix / matrix.sum(1, keepdims=True)
