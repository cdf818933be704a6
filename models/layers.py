"""Layers that two or more families share.

Images are NHWC. Kernels are HWIO, dense ones (in, out): the output axis is always the last.
Parameters are float32; `dtype` is the type of the computation. Layers draw no randomness of their
own: dropout and stochastic depth take `rngs` at call time, and `nnx.view(model,
deterministic=..., use_running_average=...)` switches between training and evaluation.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models.convolution import conv
from bocb_jax.models.resampling import adaptive_avg_pool as adaptive_avg_pool
from bocb_jax.models.resampling import avg_pool as avg_pool
from bocb_jax.models.resampling import global_average_pool as global_average_pool
from bocb_jax.models.resampling import max_pool as max_pool
from bocb_jax.models.resampling import pair
from bocb_jax.models.resampling import resize_bicubic as resize_bicubic
from bocb_jax.models.resampling import resize_position_embedding as resize_position_embedding

Dtype = Any
Initializer = Callable[..., jax.Array]

he_normal_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
he_normal_fan_in = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
# What PyTorch gives a layer that nobody initializes: uniform within 1 / sqrt(fan_in).
torch_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
xavier_uniform = nnx.initializers.xavier_uniform()


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x times the normal distribution function of x, as PyTorch computes it."""
    if jnp.finfo(x.dtype).bits < 32:  # too coarse for 1 + erf, whose tail would be lost
        return jax.nn.gelu(x, approximate=False)
    return x * (0.5 * (1 + jax.lax.erf(x * 2**-0.5)))  # on CPUs quicker than JAX's, by erfc


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


def depthwise(features: int, kernel_size: int, **kwargs) -> Conv:
    """A convolution of each channel by itself.

    Its initial variance is He's by fan_out over groups, which is the fan_in of such a kernel.
    """
    kwargs.setdefault("kernel_init", he_normal_fan_in)
    return Conv(features, features, kernel_size, groups=features, **kwargs)


def patches(in_features: int, out_features: int, side: int, **kwargs) -> Conv:
    """A convolution whose windows neither overlap nor leave gaps, initialized as PyTorch's."""
    kwargs.setdefault("kernel_init", torch_uniform)
    kwargs.setdefault("bias_init", symmetric_uniform((in_features * side**2) ** -0.5))
    return Conv(in_features, out_features, side, strides=side, padding=0, **kwargs)


class Linear(nnx.Linear):
    """A dense layer over the last axis: (..., in) with a kernel (in, out) -> (..., out)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        if jax.default_backend() != "cpu":
            return super().__call__(x)
        # Between two matrices: with more axes, XLA transposes an operand of the kernel's gradient,
        # and computes anew whatever it comes from as it does.
        y = super().__call__(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])


def classifier(in_features: int, num_classes: int, **kwargs) -> Linear:
    """The last dense layer, which a new number of classes replaces."""
    return Linear(in_features, num_classes, kernel_metadata={"kind": "head"}, **kwargs)


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


def round_width(channels: float) -> int:
    """The multiple of 8 next to `channels`, at most a tenth below them."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


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


def stage_maps(x: jax.Array, stages: Iterable[Sequence], rngs: nnx.Rngs | None) -> list[jax.Array]:
    """What each stage gives.

    Args:
      x: input of the first stage.
      stages: (layer, blocks) or (layer, blocks, layer) each; only blocks take `rngs`.
      rngs: of the call.
    """
    maps = []
    for before, blocks, *after in stages:
        x = before(x)
        for block in blocks:
            x = block(x, rngs=rngs)
        for layer in after:
            x = layer(x)
        maps.append(x)
    return maps


def per_channel(value: jax.Array, like: jax.Array) -> jax.Array:
    """A vector of channels, with leading axes of one so that it broadcasts against `like`."""
    return value.reshape((1,) * (like.ndim - 1) + (-1,))


class BatchNorm(nnx.Module):
    """Batch normalization with the statistics of PyTorch (Ioffe & Szegedy, 2015).

    In training the batch's mean and biased variance normalize; the running variance takes the
    unbiased one, as in PyTorch and unlike `nnx.BatchNorm`. On a sharded batch the statistics are
    those of the whole batch. Statistics are float32 whatever the type of the computation.

    Attributes:
      groups: equal parts of the batch, in order, that have statistics of their own; the running
        ones take the mean over the parts. As many as there are devices is BatchNorm that is not
        synchronized; more is ghost BatchNorm (Hoffer et al., 2017, arXiv 1705.08741).

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
        self.groups = 1
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
        elif self.groups == 1:
            mean, var = self._moments(x32)
            self._remember(mean, var, x.size // x.shape[-1])
        else:
            parts = x32.reshape(self.groups, -1, *x.shape[1:])
            means, variances = jax.vmap(self._moments)(parts)
            self._remember(
                means.mean(0), variances.mean(0), x[0].size * parts.shape[1] // x.shape[-1]
            )
            return jax.vmap(self._normalize)(parts, means, variances).reshape(x.shape).astype(dtype)
        return self._normalize(x32, mean, var).astype(dtype)

    def _moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        return mean, jnp.square(x - per_channel(mean, x)).mean(axes)

    def _normalize(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        gain = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        shift = self.bias[...] - mean * gain
        return x * per_channel(gain, x) + per_channel(shift, x)

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """The gain and the shift per channel of evaluation, for folding into a convolution."""
        gain = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
        return gain, self.bias[...] - self.mean[...] * gain

    def _remember(self, mean, var, count):
        keep = 1 - self.momentum
        mean, unbiased_var = jax.lax.stop_gradient((mean, var * (count / max(count - 1, 1))))
        # Not by `self.mean[...] = `, which asks a tracer for its sharding: a search of the whole
        # trace so far, which took most of the tracing of a net of a hundred layers.
        self.mean.set_value(keep * self.mean[...] + self.momentum * mean)
        self.var.set_value(keep * self.var[...] + self.momentum * unbiased_var)


class Affine(nnx.Module):
    """A learned scale and bias per channel: what is left of a norm that does not normalize."""

    def __init__(self, num_features: int, *, scale_init: Initializer = nnx.initializers.ones):
        self.scale = nnx.Param(scale_init(None, (num_features,), jnp.float32), kind="norm")
        self.bias = nnx.Param(jnp.zeros((num_features,), jnp.float32), kind="norm")

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (per_channel(v[...].astype(x.dtype), x) for v in (self.scale, self.bias))
        return x * scale + bias


NORMS = ("batch", "layer", "group", "none")


def norm(kind: str, num_features: int, *, scale_init=nnx.initializers.ones, dtype=None, rngs):
    """A norm by name, for the question what a backbone owes to its own.

    Each has a learned scale and bias per channel, so that nothing but the statistics differs.

    Args:
      kind: "batch"; "layer", over the channels of a pixel; "group", over the map and as many
        groups as have four channels, at most 32 (Wu and He, 2018, arXiv:1803.08494); "none".
      num_features: channels, the last axis.
      scale_init: initializer of the scale.
    """
    if kind == "batch":
        return BatchNorm(num_features, scale_init=scale_init, dtype=dtype, rngs=rngs)
    if kind == "layer":
        return nnx.LayerNorm(num_features, scale_init=scale_init, dtype=dtype, rngs=rngs)
    if kind == "group":
        groups = math.gcd(32, max(num_features // 4, 1))
        return nnx.GroupNorm(
            num_features, groups, scale_init=scale_init, epsilon=1e-5, dtype=dtype, rngs=rngs
        )
    if kind == "none":
        return Affine(num_features, scale_init=scale_init)
    raise UserError(f"norm is {', '.join(map(repr, NORMS))}, not {kind!r}.")


class LayerScale(nnx.Module):
    """A learned gain per channel on a residual branch (Touvron et al., 2021, arXiv:2103.17239)."""

    def __init__(self, num_features: int, init_value: float = 1e-5):
        self.gamma = nnx.Param(jnp.full((num_features,), init_value, jnp.float32), kind="scale")

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * per_channel(self.gamma[...].astype(x.dtype), x)


def response_norm(x: jax.Array, gain: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Stresses the channels that are strong on the whole map (Woo et al., 2023, arXiv:2301.00808).

    Args:
      x: maps (batch, h, w, c).
      gain: learned (c,); 0 is the identity.
      bias: learned (c,).
    """
    energy = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True)
    # The floor keeps the gradient of a channel that is zero everywhere from being 0 / 0.
    norm = jnp.sqrt(jnp.maximum(energy, 1e-30))
    relative = norm / (norm.mean(axis=-1, keepdims=True) + 1e-6)
    y = x * (1 + per_channel(gain, x) * relative).astype(x.dtype)
    return y if bias is None else y + per_channel(bias.astype(x.dtype), x)


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
            Linear,
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
    if bias is not None:
        scores = scores + bias
    # The softmax divides after the product, where there are fewer entries than scores.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = (dropout(weights).astype(v.dtype) @ v / total).astype(v.dtype)
    y = jnp.swapaxes(y, -3, -2)
    return y.reshape(*y.shape[:-2], -1)
