"""Pooling and resizing of maps (B, H, W, C), with PyTorch's results."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bocb_jax.models import platform

Pair = tuple[int, int]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Return (v, v) for a number v, and two numbers as they are."""
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second


def max_pool(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
) -> jax.Array:
    """Return the maximum over windows of (B, H, W, C); `strides` defaults to the window.

    The gradient goes to the first maximum of a window, as in PyTorch. XLA's takes 4 to 8 times as
    long on a CPU, so it is defined here for CPUs. It can be differentiated again, but there the
    pooling itself has no forward-mode derivative.
    """
    window, strides, padding = pair(window), pair(strides or window), pair(padding)
    if platform.target() == "cpu" and jnp.issubdtype(x.dtype, jnp.floating):
        return _cpu_max_pool(x, window, strides, padding, x.shape[1:3])
    return _xla_max_pool(x, window, strides, padding)


def _xla_max_pool(x: jax.Array, window: Pair, strides: Pair, padding: Pair) -> jax.Array:
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return _reduce_window(x, lowest, jax.lax.max, window, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _cpu_max_pool(
    x: jax.Array, window: Pair, strides: Pair, padding: Pair, size: Sequence[int]
) -> jax.Array:
    del size  # (H, W), needed by the gradient
    return _xla_max_pool(x, window, strides, padding)


def _max_pool_forward(
    x: jax.Array, window: Pair, strides: Pair, padding: Pair, size: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Return the maxima (B, H', W', C) and, of each window, the number of its first maximum."""
    del size
    y = _xla_max_pool(x, window, strides, padding)
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


def _max_pool_backward(
    window: Pair,
    strides: Pair,
    padding: Pair,
    size: Sequence[int],
    first: jax.Array,
    grad: jax.Array,
) -> tuple[jax.Array]:
    """Return the gradient (B, H, W, C) of x.

    Pixels that are congruent modulo the strides form one map each, to which a tap adds a shifted
    copy of the masked gradient (B, H', W', C). The s_h * s_w maps are interleaved at the end: no
    scatter.
    """
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
    stacked = jnp.stack(list(maps.values()), -2)  # (B, *cells, s_h * s_w, C)
    stacked = stacked.reshape(*grad.shape[:1], *cells, *strides, -1).transpose(0, 1, 3, 2, 4, 5)
    whole = stacked.reshape(len(grad), cells[0] * strides[0], cells[1] * strides[1], -1)
    (top, left), (height, width) = padding, size
    return (whole[:, top : top + height, left : left + width].astype(grad.dtype),)


_cpu_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    *,
    count_include_pad: bool = True,
) -> jax.Array:
    """Return the mean over windows of (B, H, W, C), as PyTorch computes it.

    Args:
      x: maps.
      window: side, or (height, width).
      strides: step, or (vertical, horizontal); by default the window.
      padding: zeros on every side, or (vertical, horizontal).
      count_include_pad: divide by the size of the window; if False, by its pixels inside the map.
    """
    window, strides, padding = pair(window), pair(strides or window), pair(padding)
    total = _reduce_window(x, 0.0, jax.lax.add, window, strides, padding)
    if count_include_pad:
        return total / math.prod(window)
    rows, columns = (
        [min(start + k, size) - max(start, 0) for start in range(-p, size + p - k + 1, s)]
        for k, s, p, size in zip(window, strides, padding, x.shape[1:3], strict=True)
    )
    inside = np.outer(rows, columns)[None, :, :, None]
    return total / jnp.asarray(inside, x.dtype)


def _reduce_window(
    x: jax.Array,
    start: float,
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    window: Pair,
    strides: Pair,
    padding: Pair,
) -> jax.Array:
    return jax.lax.reduce_window(
        x,
        np.asarray(start, x.dtype),
        combine,
        (1, *window, 1),
        (1, *strides, 1),
        ((0, 0), *((p, p) for p in padding), (0, 0)),
    )


def adaptive_avg_pool(x: jax.Array, output_size: int | Sequence[int]) -> jax.Array:
    """Return means over a grid of cells, which overlap if `output_size` does not divide the map."""
    return _resample(x, pair(output_size), _cell_means)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Return the mean (B, C) over the pixels of (B, H, W, C)."""
    return x.mean((1, 2))


def resize_bicubic(x: jax.Array, size: int | Sequence[int], *, antialias: bool = True) -> jax.Array:
    """Resize (B, H, W, C) by bicubic interpolation, as `torch.nn.functional.interpolate` does.

    Args:
      x: maps.
      size: new side, or (height, width).
      antialias: as in PyTorch. It also selects the spline: a = -0.5 with it, -0.75 without.
    """
    return _resample(x, pair(size), functools.partial(_cubic_weights, antialias=antialias))


def resize_position_embedding(
    embedding: jax.Array, size: int | Sequence[int], *, prefix_tokens: int = 0
) -> jax.Array:
    """Resize position embeddings (1, prefix_tokens + side**2, C) of a square grid to another grid.

    Args:
      embedding: learned at one size.
      size: new grid, side or (height, width).
      prefix_tokens: leading tokens outside the grid, such as the class token.
    """
    size = pair(size)
    prefix, grid = embedding[:, :prefix_tokens], embedding[:, prefix_tokens:]
    side = math.isqrt(grid.shape[1])
    if (side, side) == size:
        return embedding
    grid = grid.reshape(1, side, side, -1)
    grid = resize_bicubic(grid, size).reshape(1, size[0] * size[1], -1)
    return jnp.concatenate([prefix, grid], axis=1)


def resize_nearest(x: jax.Array, size: int | Sequence[int]) -> jax.Array:
    """Return maps (B, H, W, C) at another size, as `interpolate(mode="nearest")` of PyTorch.

    Cell i of the result is cell floor(i * old / new) of x. No gather: its gradient would add up in
    an order of its own on some devices.
    """
    size = pair(size)
    for axis, new in enumerate(size, start=1):
        old = x.shape[axis]
        if new in (old, 2 * old, 2 * old - 1):
            x = jnp.repeat(x, -(-new // old), axis)
            x = jax.lax.slice_in_dim(x, 0, new, axis=axis)
    return _resample(x, size, _nearest_weights)


def _nearest_weights(old: int, new: int) -> np.ndarray:
    """Return the weights (new, old) of nearest interpolation: a single one in each row."""
    return np.eye(old)[np.arange(new) * old // new]


def _resample(x: jax.Array, size: Pair, weights: Callable[[int, int], np.ndarray]) -> jax.Array:
    """Apply one weight matrix (new, old) along the rows and one along the columns."""
    for axis, equation in ((1, "oh,bhwc->bowc"), (2, "ow,bhwc->bhoc")):
        old, new = x.shape[axis], size[axis - 1]
        if old != new:
            matrix = jnp.asarray(weights(old, new), x.dtype)
            x = jnp.einsum(equation, matrix, x, precision="highest")
    return x


def _cell_means(old: int, new: int) -> np.ndarray:
    """Return the weights (new, old) of adaptive average pooling."""
    matrix = np.zeros((new, old))
    for i in range(new):
        start, stop = i * old // new, -(-(i + 1) * old // new)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def _cubic_weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """Return the weights (new, old) of bicubic interpolation, pixel centers at half integers."""
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
            if not antialias:  # the border pixel is repeated
                matrix[i, min(max(j, 0), old - 1)] += weight
            elif 0 <= j < old:
                matrix[i, j] += weight
    return matrix / matrix.sum(1, keepdims=True)
