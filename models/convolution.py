"""2-D convolution in several equivalent forms, the fastest chosen for the platform and the shapes.

On GPUs and TPUs every convolution is XLA's. On CPUs XLA's is uneven: small maps, 1x1 kernels,
depthwise kernels and the gradients of dense kernels run several times faster as matrix products or
as shifted multiply-adds. The form is chosen from static shapes during tracing; outputs and
gradients of all forms agree up to rounding.

Shapes below: B batch, H x W map, C_in and C_out channels, kh x kw kernel; primes mark the output.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bocb_jax.models import platform

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]  # zeros (above, below), (left, right)

# Bytes of shifted copies made at a time: few enough to stay in the caches of two cores.
_BAND_BYTES = 2**22
# XLA fuses a sum of 121 terms into one pass over memory, and splits one of 169 into many.
_MAX_TERMS = 121


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Pair = (1, 1),
    padding: str | Sequence[Pair] = "SAME",
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> jax.Array:
    """Convolve (B, H, W, C_in) with a kernel (kh, kw, C_in // groups, C_out) to (B, H', W', C_out).

    Most forms for CPUs define their own gradient. It can be differentiated again, in forward
    (`jvp` of `grad`) or reverse mode, but the convolution itself has no forward-mode derivative.
    """
    if platform.target() != "cpu":
        return xla_conv(x, kernel, strides, padding, dilation, groups)
    size, window = x.shape[1:3], kernel.shape[:2]
    reach = _reach(window, dilation)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, reach, strides, padding)
    (top, bottom), (left, right) = padding
    padding = ((top, bottom), (left, right))  # hashable
    if groups > 1:
        if groups == x.shape[-1] == kernel.shape[-1]:
            return depthwise_conv(x, kernel, strides, padding, dilation)
        return xla_conv(x, kernel, strides, padding, dilation, groups)
    unpadded = padding == ((0, 0), (0, 0))
    if unpadded and window == (1, 1):
        return pointwise_conv(x[:, :: strides[0], :: strides[1]], kernel)
    if unpadded and window == tuple(strides) and tuple(dilation) == (1, 1):
        return patchify_conv(x, kernel)
    if math.prod(_out_size(size, reach, strides, padding)) <= 16:
        return im2col_conv(x, kernel, strides, padding, dilation)
    if tuple(dilation) == (1, 1):
        return dense_conv(x, kernel, strides, padding)
    return xla_conv(x, kernel, strides, padding, dilation)


def xla_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair,
    padding: str | Sequence[Pair],
    dilation: Pair,
    groups: int = 1,
) -> jax.Array:
    """Convolve by XLA's own operation."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply every pixel of (B, H, W, K) by a kernel of K * C_out values: a 1x1 convolution."""
    # Both operands as matrices: with more axes, the kernel's gradient would copy them.
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)


def patchify_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve at a stride equal to the kernel's size: each patch is flattened and multiplied."""
    batch, height, width, features = x.shape
    kh, kw = kernel.shape[:2]
    rows, columns = height // kh, width // kw
    x = x[:, : rows * kh, : columns * kw].reshape(batch, rows, kh, columns, kw, features)
    return pointwise_conv(x.swapaxes(2, 3).reshape(batch, rows, columns, -1), kernel)


def im2col_conv(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, dilation: Pair
) -> jax.Array:
    """Convolve by one product with all windows (B, H', W', kh * kw * C_in).

    Taken for outputs of at most 16 pixels, where XLA's convolution hardly keeps the cores busy and
    the copies are small.
    """
    window, out = kernel.shape[:2], _out_shape(x, kernel, strides, padding, dilation)
    x = _pad(x, padding)
    shifts = [_shift(x, tap, out, strides, dilation) for tap in np.ndindex(window)]
    return pointwise_conv(jnp.concatenate(shifts, -1), kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense_conv(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """Convolve as `xla_conv`, with the kernel's gradient as a matrix product.

    Taken for dense kernels on maps that are not small: there the forward pass and the input's
    gradient of XLA are fast, and only the kernel's gradient is slow.
    """
    return xla_conv(x, kernel, strides, padding, (1, 1))


def _dense_forward(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return xla_conv(x, kernel, strides, padding, (1, 1)), (x, kernel)


def _dense_backward(
    strides: Pair, padding: Padding, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    transposed = jax.linear_transpose(lambda x: xla_conv(x, kernel, strides, padding, (1, 1)), x)
    return *transposed(grad), _dense_kernel_gradient(x, grad, kernel, strides, padding)


dense_conv.defvjp(_dense_forward, _dense_backward)


def _dense_kernel_gradient(
    x: jax.Array, grad: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding
) -> jax.Array:
    """Return the gradient (kh, kw, C_in, C_out) of a dense kernel, as one matrix product.

    With s the stride and x padded, the gradient at tap (i, j) is

        sum over b, h, w of  outer(x[b, s * h + i, s * w + j], grad[b, h, w])

    im2col would copy x once per tap, kh * kw times, and multiply by grad (B * H' * W', C_out). Here
    a vertical tap is split in two, i = s * q + r with r < s. Shifting x by r rows and j columns
    gives s * kw copies; shifting grad by q rows gives ceil(kh / s) copies. The product of all
    copies of x with all copies of grad,

        (s * kw * C_in, B * H' * W') @ (B * H' * W', ceil(kh / s) * C_out),

    holds every tap. A 3x3 kernel at stride 1 needs 3 + 3 copies in place of 9. Where that copies
    more channels than shifting x by all kh rows does, x alone is shifted.

    Args:
      x: input (B, H, W, C_in).
      grad: gradient of the output, (B, H', W', C_out).
      kernel: gives shape and type.
      strides: of the convolution.
      padding: of the convolution.
    """
    (kh, kw, features, out), (stride, _) = kernel.shape, strides
    batch, height, columns, _ = grad.shape

    def copied_channels(x_rows: int) -> int:
        grad_rows = -(-kh // x_rows)
        return x_rows * kw * features + (grad_rows * out if grad_rows > 1 else 0)

    x_rows = min(stride, kh, key=copied_channels)  # vertical shifts of x: the values of r
    grad_rows = -(-kh // x_rows)  # vertical shifts of grad: the values of q
    rows = height + grad_rows - 1
    # Bands of rows keep the copies in the cache until they are used. Cutting a band is one more
    # copy, which does not pay for the few input channels of most stems.
    row_bytes = batch * columns * copied_channels(x_rows) * x.dtype.itemsize
    by_bands = rows * row_bytes > 4 * _BAND_BYTES and copied_channels(x_rows) > 2 * out
    bands = -(-rows // max(_BAND_BYTES // row_bytes, 1)) if by_bands else 1
    band = -(-rows // bands)  # rows of the output in one band
    step, reach = band * stride, (band - 1) * stride + x_rows  # rows of x: to the next band, in one
    (top, _), (left, right) = padding
    bottom = step * (bands - 1) + reach - top - x.shape[1]
    x = _pad(x, ((top, max(bottom, 0)), (left, right)))
    grad = _pad(grad, ((grad_rows - 1, band * bands - height), (0, 0)))

    def side_by_side(copies: list[jax.Array]) -> jax.Array:  # n of (b, h, w, c) -> (bhw, n * c)
        return jnp.concatenate(copies, -1).reshape(-1, len(copies) * copies[0].shape[-1])

    def add_band(number: int | jax.Array, total: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(x, number * step, reach, 1)
        images = [
            _shift(part, (r, j), (band, columns), strides, (1, 1))
            for r in range(x_rows)
            for j in range(kw)
        ]
        grads = [
            lax.dynamic_slice_in_dim(grad, number * band + shift, band, 1)
            for shift in reversed(range(grad_rows))
        ]
        images_matrix, grads_matrix = side_by_side(images), side_by_side(grads)
        return total + jnp.matmul(images_matrix.T, grads_matrix, preferred_element_type=total.dtype)

    wide = jnp.promote_types(grad.dtype, jnp.float32)
    total = jnp.zeros((x_rows * kw * features, grad_rows * out), wide)
    total = add_band(0, total) if bands == 1 else lax.fori_loop(0, bands, add_band, total)
    # (r, j, C_in, q, C_out) -> (q, r, j, C_in, C_out) -> (i, j, C_in, C_out)
    total = total.reshape(x_rows, kw, features, grad_rows, out).transpose(3, 0, 1, 2, 4)
    return total.reshape(-1, kw, features, out)[:kh].astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_conv(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, dilation: Pair
) -> jax.Array:
    """Convolve each channel by itself: the sum over taps of x shifted by the tap times its weight.

    XLA's CPU convolution runs such kernels, (kh, kw, 1, C), one channel at a time; the sum is
    vectorized over channels. It accumulates in float32.
    """
    return _depthwise_sum(x, kernel, strides, padding, dilation)


# Jitted so that layers of equal shapes trace its hundred terms once.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _depthwise_sum(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, dilation: Pair
) -> jax.Array:
    out = _out_shape(x, kernel, strides, padding, dilation)
    weights, padded = kernel.astype(jnp.float32), _pad(x, padding).astype(jnp.float32)
    # Larger kernels sum over groups of rows of taps, in a loop.
    kh, kw = kernel.shape[:2]
    rows = kh if kh * kw <= _MAX_TERMS else max(40 // kw, 1)
    groups = -(-kh // rows)
    if groups > 1:
        missing = groups * rows - kh
        weights = jnp.pad(weights, ((0, missing), (0, 0), (0, 0), (0, 0)))
        padded = jnp.pad(padded, ((0, 0), (0, missing * dilation[0]), (0, 0), (0, 0)))

    def sum_taps(padded: jax.Array, weights: jax.Array) -> jax.Array:
        # Python's sum starts at 0, which XLA folds away.
        return sum(  # type: ignore[return-value]  # there is at least one tap
            _shift(padded, (i, j), out, strides, dilation) * weights[i, j][None, None]
            for i in range(rows)
            for j in range(kw)
        )

    def add_group(group: jax.Array, total: jax.Array) -> jax.Array:
        first, reach = group * rows, dilation[0] * (rows - 1) + strides[0] * (out[0] - 1) + 1
        image = lax.dynamic_slice_in_dim(padded, first * dilation[0], reach, 1)
        return total + sum_taps(image, lax.dynamic_slice_in_dim(weights, first, rows))

    if groups == 1:
        return sum_taps(padded, weights).astype(x.dtype)
    zeros = jnp.zeros((x.shape[0], *out, x.shape[-1]), jnp.float32)
    return lax.fori_loop(0, groups, add_group, zeros).astype(x.dtype)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, dilation: Pair
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise_sum(x, kernel, strides, padding, dilation), (x, kernel)


def _depthwise_backward(
    strides: Pair,
    padding: Padding,
    dilation: Pair,
    saved: tuple[jax.Array, jax.Array],
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return (
        _depthwise_input_gradient(grad, kernel, x.shape, strides, padding, dilation),
        _depthwise_kernel_gradient(x, grad, kernel, strides, padding, dilation),
    )


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_input_gradient(
    grad: jax.Array,
    kernel: jax.Array,
    shape: Sequence[int],
    strides: Pair,
    padding: Padding,
    dilation: Pair,
) -> jax.Array:
    """Return the gradient of x, of this shape: grad convolved with the mirrored kernel.

    Zeros between the pixels of grad undo the strides.
    """
    pads = [(0, 0, 0)]
    for k, d, s, (low, _), size, out in zip(
        kernel.shape[:2], dilation, strides, padding, shape[1:3], grad.shape[1:3], strict=True
    ):
        pads.append((d * (k - 1) - low, size + low - (s * (out - 1) + 1), s - 1))
    grad = lax.pad(grad, jnp.zeros((), grad.dtype), [*pads, (0, 0, 0)])
    return _depthwise_sum(grad, kernel[::-1, ::-1], (1, 1), ((0, 0), (0, 0)), dilation)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _depthwise_kernel_gradient(
    x: jax.Array,
    grad: jax.Array,
    kernel: jax.Array,
    strides: Pair,
    padding: Padding,
    dilation: Pair,
) -> jax.Array:
    """Return the gradient (kh, kw, 1, C) of a depthwise kernel.

    With s the stride, d the dilation and x padded, the gradient at tap (i, j) is

        sum over b, h, w of  x[b, s * h + d * i, s * w + d * j] * grad[b, h, w]      (C,)

    XLA's reductions over leading axes are slow on a CPU. Therefore the sum over the pixels of a
    band of output rows is unrolled, each term being all taps at once, (B, kh, kw, C), and a loop
    adds the bands. Some thirty terms run several times faster than ten and compile as fast.
    """
    (kh, kw), (dilation_h, dilation_w), (stride_h, stride_w) = kernel.shape[:2], dilation, strides
    batch, height, columns, features = grad.shape
    rows = min(-(-28 // columns), height)  # of the output in one band
    bands = -(-height // rows)
    step = stride_h * rows  # rows of x from one band to the next
    reach_h, reach_w = _reach((kh, kw), dilation)
    reach = stride_h * (rows - 1) + reach_h  # rows of x that a band sees
    (low, high), pad_w = padding
    high = max(high, step * (bands - 1) + reach - low - x.shape[1])
    x = _pad(x, ((low, high), pad_w)).astype(jnp.float32)
    grad = _pad(grad, ((0, bands * rows - height), (0, 0))).astype(jnp.float32)

    def add_band(band: jax.Array, total: jax.Array) -> jax.Array:
        image = lax.dynamic_slice_in_dim(x, band * step, reach, 1)
        weights = lax.dynamic_slice_in_dim(grad, band * rows, rows, 1)

        def term(row: int, column: int) -> jax.Array:  # (B, kh, kw, C)
            top, left = row * stride_h, column * stride_w
            taps = image[:, top : top + reach_h : dilation_h, left : left + reach_w : dilation_w]
            return taps * weights[:, row : row + 1, column : column + 1]

        return total + sum(term(row, column) for row in range(rows) for column in range(columns))

    zeros = jnp.zeros((batch, kh, kw, features), jnp.float32)
    return lax.fori_loop(0, bands, add_band, zeros).sum(0)[:, :, None].astype(kernel.dtype)


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _shift(
    padded: jax.Array, tap: Sequence[int], out: Sequence[int], strides: Pair, dilation: Pair
) -> jax.Array:
    """Return the pixels (B, *out, C) that one tap of the kernel is multiplied with."""
    start = [t * d for t, d in zip(tap, dilation, strict=True)]
    stop = [a + s * (n - 1) + 1 for a, s, n in zip(start, strides, out, strict=True)]
    return padded[:, start[0] : stop[0] : strides[0], start[1] : stop[1] : strides[1]]


def _reach(window: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Return the height and width that a dilated kernel covers."""
    return [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]


def _out_shape(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, dilation: Pair
) -> list[int]:
    reach = _reach(kernel.shape[:2], dilation)
    return _out_size(x.shape[1:3], reach, strides, padding)


def _out_size(
    size: Sequence[int], reach: Sequence[int], strides: Pair, padding: Padding
) -> list[int]:
    return [
        (n + low + high - r) // s + 1
        for n, r, s, (low, high) in zip(size, reach, strides, padding, strict=True)
    ]
