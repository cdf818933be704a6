"""Layers that two or more families share.

Images are NHWC. Kernels are HWIO, dense ones (in, out): the output axis is always the last.
Parameters are float32; `dtype` is the type of the computation. Layers draw no randomness of their
own: dropout and stochastic depth take `rngs` at call time, and `nnx.view(model,
deterministic=..., use_running_average=...)` switches between training and evaluation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Dtype = Any
Initializer = Callable[..., jax.Array]

he_normal_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def trunc_normal(stddev: float = 0.02) -> Initializer:
    """Normal, cut at two units (not two standard deviations), as timm's `trunc_normal_`."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        bound = 2.0 / stddev
        return stddev * jax.random.truncated_normal(key, -bound, bound, shape, dtype)

    return init


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """(v, v) of a number, or the two numbers given."""
    return (value, value) if isinstance(value, int) else tuple(value)


class Conv(nnx.Module):
    """2-D convolution with symmetric zero padding, dense, grouped or depthwise.

    Args:
      in_features: channels in.
      out_features: channels out.
      kernel_size: side, or (height, width).
      strides: step, or (vertical, horizontal).
      padding: zeros on every side; None keeps the size at stride 1 (`dilation * (k - 1) // 2`);
        "SAME" pads as TensorFlow does.
      dilation: spacing of the kernel's taps.
      groups: feature groups; `groups == in_features` is a depthwise convolution.

    The kernel has shape (height, width, in_features // groups, out_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str | None = None,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        dtype: Dtype = None,
        kernel_init: Initializer = he_normal_fan_out,
        bias_init: Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        self.kernel_size = pair(kernel_size)
        self.strides = pair(strides)
        self.dilation = pair(dilation)
        self.groups = groups
        self.dtype = dtype
        if padding is None:
            padding = [d * (k - 1) // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        if not isinstance(padding, str):
            padding = tuple((p, p) for p in pair(padding))
        self.padding = padding
        shape = (*self.kernel_size, in_features // groups, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = (
            nnx.Param(bias_init(rngs.params(), (out_features,), jnp.float32)) if use_bias else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = self.dtype or x.dtype
        y = conv(
            x.astype(dtype),
            self.kernel[...].astype(dtype),
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return y if self.bias is None else y + self.bias[...].astype(dtype)


def conv(x, kernel, *, strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1):
    """(batch, h, w, in) with an HWIO kernel -> (batch, h', w', out)."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def DropPath(rate: float) -> nnx.Dropout:  # noqa: N802 - it makes a layer, as a class would
    """Stochastic depth: drops a whole residual branch per sample (Huang et al., 2016)."""
    return nnx.Dropout(rate, broadcast_dims=(1, 2, 3))


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """The linear ramp 0 .. rate over all blocks, as one list a stage."""
    total = sum(depths)
    ramp = [rate * i / max(total - 1, 1) for i in range(total)]
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [ramp[start : start + depth] for start, depth in zip(starts, depths, strict=True)]
