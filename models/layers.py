"""Layers that two or more families share.

Images are NHWC. Kernels are HWIO, dense ones (in, out): the output axis is always the last.
Parameters are float32; `dtype` is the type of the computation. Layers draw no randomness of their
own: dropout and stochastic depth take `rngs` at call time, and `nnx.view(model,
deterministic=..., use_running_average=...)` switches between training and evaluation.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models.convolution import conv

Dtype = Any
Initializer = Callable[..., jax.Array]

he_normal_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# What PyTorch gives a layer that nobody initializes: uniform within 1 / sqrt(fan_in).
torch_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
xavier_uniform = nnx.initializers.xavier_uniform()
gelu = functools.partial(jax.nn.gelu, approximate=False)


def trunc_normal(stddev: float = 0.02) -> Initializer:
    """Normal, cut at two units (not two standard deviations), as timm's `trunc_normal_`."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        bound = 2.0 / stddev
        return stddev * jax.random.truncated_normal(key, -bound, bound, shape, dtype)

    return init


def symmetric_uniform(bound: float) -> Initializer:
    """Uniform between -bound and bound."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

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
        kernel_metadata: dict[str, Any] | None = None,
        rngs: nnx.Rngs,
    ):
        self.kernel_size = pair(kernel_size)
        self.strides = pair(strides)
        self.dilation = pair(dilation)
        self.groups = groups
        self.dtype = dtype
        if padding is None:
            padding = [
                d * (k - 1) // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True)
            ]
        if not isinstance(padding, str):
            padding = tuple((p, p) for p in pair(padding))
        self.padding = padding
        shape = (*self.kernel_size, in_features // groups, out_features)
        self.kernel = nnx.Param(
            kernel_init(rngs.params(), shape, jnp.float32), **(kernel_metadata or {})
        )
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
        return y if self.bias is None else y + per_channel(self.bias[...].astype(dtype), y)


class DropPath(nnx.Dropout):
    """Stochastic depth: drops a whole residual branch per sample (Huang et al., 2016).

    Args:
      rate: chance that a sample's branch is dropped; the kept ones are divided by `1 - rate`.
    """

    def __init__(self, rate: float):
        super().__init__(rate)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        if self.deterministic or self.rate == 0:
            return x
        if rngs is None:
            raise UserError(
                f"Stochastic depth of rate {self.rate} draws random numbers: call the model with "
                "rngs=nnx.Rngs(dropout=...), or switch it to evaluation with model.eval()."
            )
        keep = 1 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(rngs.dropout(), keep, shape)
        return x * (kept / keep).astype(x.dtype) if keep else jnp.zeros_like(x)


def resolve_stem(stem: str, image_size: int) -> str:
    """ "imagenet" or "cifar"; "auto" is the latter for images of up to 32 pixels a side."""
    if stem == "auto":
        return "cifar" if image_size <= 32 else "imagenet"
    if stem not in ("imagenet", "cifar"):
        raise UserError(f"stem is 'auto', 'imagenet' or 'cifar', not '{stem}'.")
    return stem


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """The linear ramp 0 .. rate over all blocks, as one list a stage."""
    total = sum(depths)
    ramp = [rate * i / max(total - 1, 1) for i in range(total)]
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [ramp[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


def per_channel(value: jax.Array, like: jax.Array) -> jax.Array:
    """A vector of channels, with leading axes of one so that it broadcasts against `like`."""
    return value.reshape((1,) * (like.ndim - 1) + (-1,))


class BatchNorm(nnx.Module):
    """Batch normalization with the statistics of PyTorch (Ioffe & Szegedy, 2015).

    In training the batch's mean and biased variance normalize; the running variance takes the
    unbiased one, as in PyTorch and unlike `nnx.BatchNorm`. On a sharded batch the statistics are
    those of the whole batch. Statistics are float32 whatever the type of the computation.

    Args:
      num_features: channels, the last axis.
      momentum: weight of the newest batch in the running statistics, as PyTorch counts it.
      epsilon: added to the variance.
      scale_init: initializer of the scale (gamma).
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        scale_init: Initializer = nnx.initializers.ones,
        dtype: Dtype = None,
        rngs: nnx.Rngs,
    ):
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.use_running_average = False
        self.scale = nnx.Param(scale_init(rngs.params(), (num_features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((num_features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((num_features,), jnp.float32))

    def set_view(self, use_running_average: bool | None = None):
        """Takes part in `nnx.view(model, use_running_average=...)`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = self.dtype or x.dtype
        x32 = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            axes = tuple(range(x.ndim - 1))
            mean = x32.mean(axes)
            var = jnp.square(x32 - per_channel(mean, x)).mean(axes)
            count = x.size // x.shape[-1]
            self._remember(mean, var * (count / max(count - 1, 1)))
        gain = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        shift = self.bias[...] - mean * gain
        return (x32 * per_channel(gain, x) + per_channel(shift, x)).astype(dtype)

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """The gain and the shift per channel of evaluation, for folding into a convolution."""
        gain = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
        return gain, self.bias[...] - self.mean[...] * gain

    def _remember(self, mean, unbiased_var):
        keep = 1 - self.momentum
        mean, unbiased_var = jax.lax.stop_gradient((mean, unbiased_var))
        self.mean[...] = keep * self.mean[...] + self.momentum * mean
        self.var[...] = keep * self.var[...] + self.momentum * unbiased_var


class LayerScale(nnx.Module):
    """A learned gain per channel on a residual branch (Touvron et al., 2021, arXiv:2103.17239)."""

    def __init__(self, num_features: int, init_value: float = 1e-5):
        self.gamma = nnx.Param(jnp.full((num_features,), init_value, jnp.float32), kind="scale")

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * per_channel(self.gamma[...].astype(x.dtype), x)


class Mlp(nnx.Module):
    """Two dense layers over the last axis, with an activation and dropout between.

    Args:
      in_features: width in and, unless `out_features` says otherwise, out.
      hidden_features: width between the layers.
      out_features: width out.
      activation: function, or module without randomness, between the layers.
      dropout: rate after each of the two layers.
      kernel_init: initializer of both kernels.
      bias_init: initializer of both biases.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        dropout: float = 0.0,
        use_bias: bool = True,
        dtype: Dtype = None,
        kernel_init: Initializer = xavier_uniform,
        bias_init: Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        dense = functools.partial(
            nnx.Linear,
            use_bias=use_bias,
            dtype=dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.fc1 = dense(in_features, hidden_features)
        self.act = activation
        self.fc2 = dense(hidden_features, out_features or in_features)
        self.drop = nnx.Dropout(dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.drop(self.act(self.fc1(x)), rngs=rngs)
        return self.drop(self.fc2(x), rngs=rngs)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bias: jax.Array | None = None,
    dropout: Callable[[jax.Array], jax.Array] = jax.nn.identity,
) -> jax.Array:
    """Softmax attention; the weights are float32 whatever the type of the computation.

    Args:
      q: queries (..., tokens, heads, channels), scaled here by `channels ** -0.5`.
      k: keys, of the same shape.
      v: values, of the same shape.
      bias: added to the scores (..., heads, tokens, tokens).
      dropout: applied to the weights.

    Returns:
      (..., tokens, heads * channels).
    """
    q, k, v = (jnp.swapaxes(x, -3, -2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ jnp.swapaxes(k, -2, -1)
    scores = scores.astype(jnp.float32)
    weights = dropout(jax.nn.softmax(scores if bias is None else scores + bias))
    y = jnp.swapaxes(weights.astype(v.dtype) @ v, -3, -2)
    return y.reshape(*y.shape[:-2], -1)


def max_pool(x, window, strides=None, padding=0):
    """Maximum over windows of (batch, h, w, c); `strides` defaults to the window, as in PyTorch."""
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return _reduce_window(x, lowest, jax.lax.max, window, strides, padding)


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


_NORMS = (BatchNorm, nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm, nnx.RMSNorm, nnx.InstanceNorm)


def parameter_kinds(model: nnx.Module) -> dict:
    """What each parameter is, for optimizers that treat kinds apart.

    A parameter may say so itself (`nnx.Param(value, kind="token")`); else its layer tells: "conv",
    "depthwise", "matrix" for kernels, "bias", and "norm" for both vectors of a norm. What neither
    tells, as in a user's own layer, is a "matrix" from two axes on and a "vector" below.

    Returns:
      Nested dicts like `nnx.to_pure_dict(nnx.state(model, nnx.Param))`, with a string per leaf.
    """
    owners = dict(nnx.iter_modules(model))
    state = nnx.state(model, nnx.Param)
    return nnx.to_pure_dict(
        nnx.map_state(
            lambda path, param: param.replace(_kind(owners[path[:-1]], path, param)), state
        )
    )


def _kind(owner, path, param):
    declared = param.get_metadata().get("kind")
    if declared:
        return declared
    if isinstance(owner, _NORMS):
        return "norm"
    if path[-1] == "bias" and param.ndim == 1:
        return "bias"
    if isinstance(owner, (Conv, nnx.Conv)):
        groups = owner.groups if isinstance(owner, Conv) else owner.feature_group_count
        return "depthwise" if groups > 1 and param.shape[-2] == 1 else "conv"
    return "matrix" if param.ndim >= 2 else "vector"


def parameter_count(model: nnx.Module) -> int:
    """Number of learned values, as PyTorch's `sum(p.numel() for p in model.parameters())`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
