"""One 2-D convolution, written for the platform that it is traced for.

GPUs and TPUs have a good convolution of every kind. XLA's for CPUs is uneven: on small maps, for
1x1 kernels and for depthwise ones, the same sum written as matrix products or as shifted products
runs several times faster. The formulation is chosen from shapes alone, when the program is traced,
and all give equal outputs and gradients up to rounding.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pairs = Sequence[tuple[int, int]]

# Of an image's copies at a time: few enough to stay in the caches of two cores.
_BAND_BYTES = 2**22


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str | Pairs = "SAME",
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> jax.Array:
    """(batch, h, w, in) with an HWIO kernel (kh, kw, in // groups, out) -> (batch, h', w', out).

    On a CPU most convolutions have a gradient of their own, which can be differentiated again,
    forward (`jvp` of `grad`) or backward, but no forward-mode derivative themselves.
    """
    if jax.default_backend() != "cpu":
        return plain(x, kernel, strides, padding, dilation, groups)
    size, window = x.shape[1:3], kernel.shape[:2]
    reach = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, reach, strides, padding)
    padding = tuple(map(tuple, padding))
    if groups > 1:
        depthwise = groups == x.shape[-1] == kernel.shape[-1]
        form = shifted_products if depthwise else functools.partial(plain, groups=groups)
        return form(x, kernel, strides, padding, dilation)
    unpadded = not any(map(any, padding))
    if unpadded and window == (1, 1):
        return product(x[:, :: strides[0], :: strides[1]], kernel)
    if unpadded and window == tuple(strides) and tuple(dilation) == (1, 1):
        return product_of_patches(x, kernel)
    if math.prod(_out_size(size, reach, strides, padding)) <= 16:
        return product_of_windows(x, kernel, strides, padding, dilation)
    if tuple(dilation) == (1, 1):
        return dense(x, kernel, strides, padding)
    return plain(x, kernel, strides, padding, dilation)


def plain(x, kernel, strides, padding, dilation, groups=1):
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense(x, kernel, strides, padding):
    """XLA's own convolution, but for the kernel's gradient, which is one matrix product."""
    return plain(x, kernel, strides, padding, (1, 1))


def _dense_forward(x, kernel, strides, padding):
    return plain(x, kernel, strides, padding, (1, 1)), (x, kernel)


def _dense_backward(strides, padding, saved, grad):
    x, kernel = saved
    by_input = jax.linear_transpose(lambda x: plain(x, kernel, strides, padding, (1, 1)), x)
    return *by_input(grad), _dense_kernel_gradient(x, grad, kernel, strides, padding)


dense.defvjp(_dense_forward, _dense_backward)


def _dense_kernel_gradient(x, grad, kernel, strides, padding):
    """For every tap, the image shifted by the tap, as a matrix, times the gradient.

    A tap shifts to the side and down. Images shifted to the side stand side by side; for shifts
    down, images do too, or, the other way, gradients: whichever copies fewer channels. (For a
    kernel of 3x3 that is 3 + 3 copies in place of 9. With a stride, the rows that a step passes
    over lie beside each other.) One product holds all pairs of them.
    """
    (kh, kw, features, out), (stride, _) = kernel.shape, strides
    batch, height, columns, _ = grad.shape

    def copied(taps):
        shifts = -(-kh // taps)
        return taps * kw * features + (shifts * out if shifts > 1 else 0)

    taps = min(stride, kh, key=copied)  # of a column, for which the image is shifted
    shifts = -(-kh // taps)
    rows = height + shifts - 1
    # By bands of rows, copies are still in the cache when they are used. To cut the bands out is a
    # copy more: it does not pay for the few channels of most stems.
    row = batch * columns * copied(taps) * x.dtype.itemsize  # bytes of the copies of one
    by_bands = rows * row > 4 * _BAND_BYTES and copied(taps) > 2 * out
    bands = -(-rows // max(_BAND_BYTES // row, 1)) if by_bands else 1
    band = -(-rows // bands)
    step, reach = band * stride, (band - 1) * stride + taps
    (top, _), (left, right) = padding
    bottom = step * (bands - 1) + reach - top - x.shape[1]
    x = _pad(x, ((top, max(bottom, 0)), (left, right)))
    grad = _pad(grad, ((shifts - 1, band * bands - height), (0, 0)))

    def add(number, total):
        part = lax.dynamic_slice_in_dim(x, number * step, reach, 1)
        images = [
            _shift(part, (row, column), (band, columns), strides, (1, 1))
            for row in range(taps)
            for column in range(kw)
        ]
        grads = [
            lax.dynamic_slice_in_dim(grad, number * band + shift, band, 1)
            for shift in reversed(range(shifts))
        ]
        images, grads = (
            jnp.concatenate(parts, -1).reshape(-1, len(parts) * parts[0].shape[-1])
            for parts in (images, grads)
        )
        return total + jnp.matmul(images.T, grads, preferred_element_type=total.dtype)

    wide = jnp.promote_types(grad.dtype, jnp.float32)
    pairs = jnp.zeros((taps * kw * features, shifts * out), wide)
    pairs = add(0, pairs) if bands == 1 else lax.fori_loop(0, bands, add, pairs)
    pairs = pairs.reshape(taps, kw, features, shifts, out).transpose(3, 0, 1, 2, 4)
    return pairs.reshape(-1, kw, features, out)[:kh].astype(kernel.dtype)


def product(x, kernel):
    """Every pixel's channels times a kernel of one pixel."""
    # As plain matrices: the kernel's gradient of a product with more axes copies its operands.
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)


def product_of_patches(x, kernel):
    """Windows that neither overlap nor leave gaps: cut the image into patches, one product."""
    batch, height, width, features = x.shape
    kh, kw = kernel.shape[:2]
    rows, columns = height // kh, width // kw
    x = x[:, : rows * kh, : columns * kw].reshape(batch, rows, kh, columns, kw, features)
    return product(x.swapaxes(2, 3).reshape(batch, rows, columns, -1), kernel)


def product_of_windows(x, kernel, strides, padding, dilation):
    """All windows side by side, one product (im2col)."""
    window, out = kernel.shape[:2], _out_shape(x, kernel, strides, padding, dilation)
    x = _pad(x, padding)
    shifts = [_shift(x, tap, out, strides, dilation) for tap in np.ndindex(window)]
    return product(jnp.concatenate(shifts, -1), kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def shifted_products(x, kernel, strides, padding, dilation):
    """Depthwise: the sum over the kernel's taps of the shifted image times the tap's weights."""
    return _shifted_products(x, kernel, strides, padding, dilation)


# Traced once for layers of equal shapes: the sums below have up to a hundred terms.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _shifted_products(x, kernel, strides, padding, dilation):
    out = _out_shape(x, kernel, strides, padding, dilation)
    weights, padded = kernel.astype(jnp.float32), _pad(x, padding).astype(jnp.float32)
    # XLA makes one pass of a sum of 121 terms and many of a sum of 169: from there on, the sum goes
    # by groups of rows of taps, in a loop.
    kh, kw = kernel.shape[:2]
    rows = kh if kh * kw <= 121 else max(40 // kw, 1)
    groups = -(-kh // rows)
    if groups > 1:
        missing = groups * rows - kh
        weights = jnp.pad(weights, ((0, missing), (0, 0), (0, 0), (0, 0)))
        padded = jnp.pad(padded, ((0, 0), (0, missing * dilation[0]), (0, 0), (0, 0)))

    def sum_of(padded, weights):
        return sum(
            _shift(padded, (i, j), out, strides, dilation) * weights[i, j][None, None]
            for i in range(rows)
            for j in range(kw)
        )

    def add(group, total):
        first, reach = group * rows, dilation[0] * (rows - 1) + strides[0] * (out[0] - 1) + 1
        image = lax.dynamic_slice_in_dim(padded, first * dilation[0], reach, 1)
        return total + sum_of(image, lax.dynamic_slice_in_dim(weights, first, rows))

    if groups == 1:
        return sum_of(padded, weights).astype(x.dtype)
    zeros = jnp.zeros((x.shape[0], *out, x.shape[-1]), jnp.float32)
    return lax.fori_loop(0, groups, add, zeros).astype(x.dtype)


def _shifted_products_forward(x, kernel, strides, padding, dilation):
    return _shifted_products(x, kernel, strides, padding, dilation), (x, kernel)


def _shifted_products_backward(strides, padding, dilation, saved, grad):
    x, kernel = saved
    return (
        _depthwise_input_gradient(grad, kernel, x.shape, strides, padding, dilation),
        _depthwise_kernel_gradient(x, grad, kernel, strides, padding, dilation),
    )


shifted_products.defvjp(_shifted_products_forward, _shifted_products_backward)


def _depthwise_input_gradient(grad, kernel, shape, strides, padding, dilation):
    """The mirrored kernel over the gradient, spread out where the convolution strode."""
    pads = [(0, 0, 0)]
    for k, d, s, (low, _), size, out in zip(
        kernel.shape[:2], dilation, strides, padding, shape[1:3], grad.shape[1:3], strict=True
    ):
        pads.append((d * (k - 1) - low, size + low - (s * (out - 1) + 1), s - 1))
    grad = lax.pad(grad, jnp.zeros((), grad.dtype), [*pads, (0, 0, 0)])
    return _shifted_products(grad, kernel[::-1, ::-1], (1, 1), ((0, 0), (0, 0)), dilation)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _depthwise_kernel_gradient(x, grad, kernel, strides, padding, dilation):
    """For every tap and channel, the image shifted by the tap times the gradient, summed up.

    XLA's sums over leading axes are slow on a CPU. So the sum over a band of a few rows is written
    out pixel by pixel, for all taps at once, and a loop adds band to band: a sum of some thirty
    terms runs several times faster than one of ten, and compiles as fast.
    """
    (kh, kw), (dilation_h, dilation_w), (stride_h, stride_w) = kernel.shape[:2], dilation, strides
    batch, height, columns, features = grad.shape
    rows = min(-(-28 // columns), height)
    bands = -(-height // rows)
    step = stride_h * rows
    reach_h, reach_w = dilation_h * (kh - 1) + 1, dilation_w * (kw - 1) + 1
    reach = stride_h * (rows - 1) + reach_h
    (low, high), pad_w = padding
    high = max(high, step * (bands - 1) + reach - low - x.shape[1])
    x = _pad(x, ((low, high), pad_w)).astype(jnp.float32)
    grad = _pad(grad, ((0, bands * rows - height), (0, 0))).astype(jnp.float32)

    def add(band, total):
        image = lax.dynamic_slice_in_dim(x, band * step, reach, 1)
        weights = lax.dynamic_slice_in_dim(grad, band * rows, rows, 1)

        def term(row, column):  # (batch, kh, kw, features)
            top, left = row * stride_h, column * stride_w
            taps = image[:, top : top + reach_h : dilation_h, left : left + reach_w : dilation_w]
            return taps * weights[:, row : row + 1, column : column + 1]

        return total + sum(term(row, column) for row in range(rows) for column in range(columns))

    zeros = jnp.zeros((batch, kh, kw, features), jnp.float32)
    return lax.fori_loop(0, bands, add, zeros).sum(0)[:, :, None].astype(kernel.dtype)


def _pad(x, padding):
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _shift(padded, tap, out, strides, dilation):
    """What one tap of the kernel sees: (batch, *out, features)."""
    start = [t * d for t, d in zip(tap, dilation, strict=True)]
    stop = [a + s * (n - 1) + 1 for a, s, n in zip(start, strides, out, strict=True)]
    return padded[:, start[0] : stop[0] : strides[0], start[1] : stop[1] : strides[1]]


def _out_shape(x, kernel, strides, padding, dilation):
    reach = [d * (k - 1) + 1 for k, d in zip(kernel.shape[:2], dilation, strict=True)]
    return _out_size(x.shape[1:3], reach, strides, padding)


def _out_size(size, reach, strides, padding):
    return [
        (n + low + high - r) // s + 1
        for n, r, s, (low, high) in zip(size, reach, strides, padding, strict=True)
    ]
