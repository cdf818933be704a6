"""Transposed convolution, to enlarge maps."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bocb_jax.errors import UserError
from bocb_jax.models import layers, platform
from bocb_jax.models.convolution import conv


class ConvTranspose(nnx.Module):
    """Transposed convolution that multiplies height and width by its stride, as in PyTorch.

    The kernel is that of the convolution whose transpose this is, (side, side, out, in), so that
    it becomes PyTorch's (in, out, side, side) by the rule of all kernels.

    Args:
      in_features: input channels.
      out_features: output channels.
      kernel_size: side.
      strides: factor by which the map grows; `kernel_size`, or less by an even number.
      use_bias: whether a bias is added.
      dtype: type of the computation.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      rngs: random streams; `params` draws both.

    Raises:
      UserError: no padding makes the output that large.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        strides: int,
        use_bias: bool = True,
        dtype: layers.Dtype = None,
        kernel_init: layers.Initializer = layers.torch_uniform,
        bias_init: layers.Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        if kernel_size < strides or (kernel_size - strides) % 2:
            raise UserError(
                f"A transposed convolution of {kernel_size} pixels at stride {strides} does not "
                "multiply the size; the kernel must be the stride or larger by an even number."
            )
        self.strides = strides
        self.dtype = dtype
        shape = (kernel_size, kernel_size, out_features, in_features)
        metadata: dict[str, Any] = {"kind": "conv"}
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32), **metadata)
        self.bias = (
            nnx.Param(bias_init(rngs.params(), (out_features,), jnp.float32)) if use_bias else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = self.dtype or x.dtype
        y = transposed_conv(x.astype(dtype), self.kernel[...].astype(dtype), self.strides)
        return y if self.bias is None else y + layers.per_channel(self.bias[...].astype(dtype), y)


def transposed_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return the transpose of a convolution, (B, stride * H, stride * W, out).

    Args:
      x: (B, H, W, in).
      kernel: (side, side, out, in); the convolution pads by (side - stride) / 2.
      stride: of the convolution.
    """
    side, padding = len(kernel), (len(kernel) - stride) // 2
    batch, height, width, _ = x.shape
    if side == stride:  # every pixel becomes a patch of its own: one product of matrices
        y = jnp.einsum("bhwi,kloi->bhkwlo", x, kernel)
        return y.reshape(batch, stride * height, stride * width, -1)
    if platform.target() != "cpu":
        return lax.conv_general_dilated(
            x,
            kernel[::-1, ::-1].swapaxes(2, 3),
            window_strides=(1, 1),
            padding=[(side - 1 - padding,) * 2] * 2,
            lhs_dilation=(stride, stride),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    # XLA's form for CPUs multiplies the zeros between the pixels as well. Each phase of the output,
    # every stride-th pixel, is a convolution of its own with every stride-th tap of the kernel.
    phases = [_phase(first, side, stride, padding) for first in range(stride)]
    rows = [
        jnp.stack(
            [
                conv(x, kernel[top][:, left].swapaxes(2, 3), padding=(pad_h, pad_w))
                for left, pad_w in phases
            ],
            axis=3,
        )
        for top, pad_h in phases
    ]
    return jnp.stack(rows, axis=2).reshape(batch, stride * height, stride * width, -1)


def _phase(first: int, side: int, stride: int, padding: int) -> tuple[slice, tuple[int, int]]:
    """Return the taps that reach pixels `first`, `first + stride` ..., and the zeros around x.

    Pixel `o` of the output gets tap `t` times pixel `(o + padding - t) / stride` of the input: with
    rising taps the input's pixels fall, so the taps are taken backwards.
    """
    least = (first + padding) % stride
    most = least + (side - 1 - least) // stride * stride
    before, after = (most - padding - first) // stride, (first + padding - least) // stride
    return slice(most, None if least < stride else least - stride, -stride), (before, after)
