"""Layers that several families share.

Images and maps are (B, H, W, C). Kernels are HWIO, those of dense layers (in, out): the output axis
is the last. Parameters are float32; `dtype` is the type of the computation, by default the
input's. Layers hold no random state: dropout and stochastic depth take `rngs` in the call, and
`nnx.view(model, deterministic=..., use_running_average=...)` switches between training and
evaluation.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import platform
from bocb_jax.models.convolution import conv
from bocb_jax.models.resampling import adaptive_avg_pool as adaptive_avg_pool
from bocb_jax.models.resampling import avg_pool as avg_pool
from bocb_jax.models.resampling import global_average_pool as global_average_pool
from bocb_jax.models.resampling import max_pool as max_pool
from bocb_jax.models.resampling import pair
from bocb_jax.models.resampling import resize_bicubic as resize_bicubic
from bocb_jax.models.resampling import resize_nearest as resize_nearest
from bocb_jax.models.resampling import resize_position_embedding as resize_position_embedding

Dtype = Any
Initializer = Callable[..., jax.Array]
Layer = Callable[..., jax.Array]  # a module, or a function where there is nothing to learn

he_normal_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
he_normal_fan_in = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
# PyTorch's default: uniform within 1 / sqrt(fan_in).
torch_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
xavier_uniform = nnx.initializers.xavier_uniform()


def gelu(x: jax.Array) -> jax.Array:
    """Return the exact GELU, x times the normal distribution function of x."""
    if jnp.finfo(x.dtype).bits < 32:  # 1 + erf would round the left tail to zero
        return jax.nn.gelu(x, approximate=False)
    return x * (0.5 * (1 + jax.lax.erf(x * 2**-0.5)))  # faster on CPUs than JAX's erfc


def trunc_normal(stddev: float = 0.02) -> Initializer:
    """Return timm's `trunc_normal_`: normal, truncated at +-2 (not at two standard deviations)."""

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: Dtype = jnp.float32,
        out_sharding: Any = None,
    ) -> jax.Array:
        del out_sharding
        bound = 2.0 / stddev
        return stddev * jax.random.truncated_normal(key, -bound, bound, shape, dtype)

    return init


def symmetric_uniform(bound: float) -> Initializer:
    """Return an initializer that is uniform between -bound and bound."""

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: Dtype = jnp.float32,
        out_sharding: Any = None,
    ) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nnx.Module):
    """2-D convolution with symmetric zero padding: dense, grouped or depthwise.

    Args:
      in_features: input channels.
      out_features: output channels.
      kernel_size: side, or (height, width).
      strides: step, or (vertical, horizontal).
      padding: zeros on every side; None keeps the size at stride 1 (`dilation * (k - 1) // 2`);
        "SAME" pads as TensorFlow does, at stride 2 more to the right and below.
      dilation: spacing of the kernel's taps.
      groups: channel groups; `groups == in_features` is a depthwise convolution.

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
        self.padding = padding if isinstance(padding, str) else tuple((p, p) for p in pair(padding))
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


def depthwise_conv(features: int, kernel_size: int, **kwargs: Any) -> Conv:
    """Return a convolution of each channel by itself.

    The default initialization is He's by fan_out / groups, which is the fan_in of such a kernel.
    """
    kwargs.setdefault("kernel_init", he_normal_fan_in)
    return Conv(features, features, kernel_size, groups=features, **kwargs)


def patch_conv(in_features: int, out_features: int, side: int, **kwargs: Any) -> Conv:
    """Return a convolution of non-overlapping patches, initialized as PyTorch does by default."""
    kwargs.setdefault("kernel_init", torch_uniform)
    kwargs.setdefault("bias_init", symmetric_uniform((in_features * side**2) ** -0.5))
    return Conv(in_features, out_features, side, strides=side, padding=0, **kwargs)


class Linear(nnx.Linear):
    """A dense layer over the last axis: (..., in) with a kernel (in, out) to (..., out)."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        if platform.target() != "cpu" or out_sharding is not None:
            return super().__call__(inputs, out_sharding)
        # As a product of two matrices: with more axes, XLA's kernel gradient transposes an operand
        # and recomputes whatever produced it.
        y = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return y.reshape(*inputs.shape[:-1], y.shape[-1])


def classifier(in_features: int, num_classes: int, **kwargs: Any) -> Linear:
    """Return the last dense layer, marked as the one that another number of classes replaces."""
    return Linear(in_features, num_classes, kernel_metadata={"kind": "head"}, **kwargs)


class DropPath(nnx.Dropout):
    """Stochastic depth: drops the residual branch of a sample (Huang et al., 2016, 1603.09382).

    Args:
      rate: probability that a sample's branch is dropped; kept ones are divided by `1 - rate`.

    Raises:
      UserError: called in training mode without `rngs`.
    """

    def __init__(self, rate: float):
        super().__init__(rate)

    def __call__(  # type: ignore[override]  # `deterministic` comes from nnx.view alone
        self, x: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        if self.deterministic or self.rate == 0:
            return x
        if rngs is None:
            raise UserError(
                f"Stochastic depth of rate {self.rate} draws random numbers: call the model with "
                "rngs=nnx.Rngs(dropout=...), or switch it to evaluation by model.eval()."
            )
        keep = 1 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(rngs.dropout(), keep, shape)
        return x * (kept / keep).astype(x.dtype) if keep else jnp.zeros_like(x)


def make_divisible(channels: float) -> int:
    """Return the multiple of 8 nearest to `channels`, at most a tenth below (MobileNet's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def resolve_stem(stem: str, image_size: int) -> str:
    """Return "imagenet" or "cifar"; "auto" is "cifar" for images of at most 32 pixels a side.

    Raises:
      UserError: another stem.
    """
    if stem == "auto":
        return "cifar" if image_size <= 32 else "imagenet"
    if stem not in ("imagenet", "cifar"):
        raise UserError(f"stem is 'auto', 'imagenet' or 'cifar', not '{stem}'.")
    return stem


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return rates that rise linearly from 0 to `rate` over all blocks, one list per stage."""
    total = sum(depths)
    ramp = [rate * i / max(total - 1, 1) for i in range(total)]
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [ramp[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


def stage_maps(x: jax.Array, stages: Iterable[Sequence], rngs: nnx.Rngs | None) -> list[jax.Array]:
    """Return the output of each stage.

    Args:
      x: input of the first stage.
      stages: each is (layer, blocks) or (layer, blocks, layer); only blocks take `rngs`.
      rngs: random streams of dropout and stochastic depth.
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
    """Return a vector (C,) with leading axes of one, to broadcast against `like` (..., C)."""
    return value.reshape((1,) * (like.ndim - 1) + (-1,))


class BatchNorm(nnx.Module):
    """Batch normalization with PyTorch's statistics (Ioffe and Szegedy, 2015, arXiv:1502.03167).

    Training normalizes by the batch's mean and biased variance; the running variance averages the
    unbiased one, unlike `nnx.BatchNorm`. The statistics of a sharded batch are those of the whole
    batch. Statistics are float32 whatever `dtype` is.

    Attributes:
      groups: number of equal consecutive parts of the batch with separate statistics; the running
        statistics average over the parts. One part per device is unsynchronized BatchNorm, more
        are ghost BatchNorm (Hoffer et al., 2017, arXiv:1705.08741).
      fixed_statistics: whether training, too, normalizes by the running statistics and leaves them
        as they are, the rule of detectors that start from trained weights.

    Args:
      num_features: channels, the last axis.
      momentum: weight of the newest batch in the running statistics, as in PyTorch.
      epsilon: added to the variance.
      scale_init: initializer of the scale (gamma).
      dtype: type of the output.
      rngs: random streams; `params` draws the scale.
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
        self.fixed_statistics = False
        self.use_running_average = False
        self.scale = nnx.Param(scale_init(rngs.params(), (num_features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((num_features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((num_features,), jnp.float32))

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Implement `nnx.view(model, use_running_average=...)`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = self.dtype or x.dtype
        x32 = x.astype(jnp.float32)
        if self.use_running_average or self.fixed_statistics:
            mean, var = self.mean[...], self.var[...]
        elif self.groups == 1:
            mean, var = self._moments(x32)
            self._update_running(mean, var, x.size // x.shape[-1])
        else:
            parts = x32.reshape(self.groups, -1, *x.shape[1:])  # (groups, B / groups, ..., C)
            means, variances = jax.vmap(self._moments)(parts)
            self._update_running(
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
        """Return the gain and shift (C,) of evaluation mode, to fold into a convolution."""
        gain = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
        return gain, self.bias[...] - self.mean[...] * gain

    def _update_running(self, mean: jax.Array, var: jax.Array, count: int) -> None:
        """Average in a batch's mean and biased variance (C,) over `count` values per channel."""
        keep = 1 - self.momentum
        mean, unbiased_var = jax.lax.stop_gradient((mean, var * (count / max(count - 1, 1))))
        # `self.mean[...] = value` would ask the tracer for its sharding, which searches the trace
        # so far: most of the tracing time of a model of a hundred layers.
        self.mean.set_value(keep * self.mean[...] + self.momentum * mean)
        self.var.set_value(keep * self.var[...] + self.momentum * unbiased_var)


class Affine(nnx.Module):
    """A learned scale and bias per channel: a norm without the normalization."""

    def __init__(self, num_features: int, *, scale_init: Initializer = nnx.initializers.ones):
        self.scale = nnx.Param(scale_init(None, (num_features,), jnp.float32), kind="norm")
        self.bias = nnx.Param(jnp.zeros((num_features,), jnp.float32), kind="norm")

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (per_channel(v[...].astype(x.dtype), x) for v in (self.scale, self.bias))
        return x * scale + bias


NORMS = ("batch", "layer", "group", "none")


def norm(
    kind: str,
    num_features: int,
    *,
    scale_init: Initializer = nnx.initializers.ones,
    dtype: Dtype = None,
    rngs: nnx.Rngs,
) -> Layer:
    """Return a norm by name, to compare a backbone with itself under other norms.

    All of them have a learned scale and bias per channel; only the statistics differ.

    Args:
      kind: "batch"; "layer", over the channels of each pixel; "group", over a map in groups of
        four or more channels, at most 32 groups (Wu and He, 2018, arXiv:1803.08494); or "none".
      num_features: channels, the last axis.
      scale_init: initializer of the scale.
      dtype: type of the computation.
      rngs: random streams; `params` draws the scale.

    Raises:
      UserError: another kind.
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
    """Scale each channel by its energy on the map relative to the mean over channels.

    Global response normalization of ConvNeXt V2 (Woo et al., 2023, arXiv:2301.00808).

    Args:
      x: maps (B, H, W, C).
      gain: learned, (C,); zeros give the identity.
      bias: learned, (C,).
    """
    energy = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True)
    # The floor avoids a gradient of 0 / 0 for a channel that is zero everywhere.
    norm = jnp.sqrt(jnp.maximum(energy, 1e-30))
    relative = norm / (norm.mean(axis=-1, keepdims=True) + 1e-6)
    y = x * (1 + per_channel(gain, x) * relative).astype(x.dtype)
    return y if bias is None else y + per_channel(bias.astype(x.dtype), x)


class Mlp(nnx.Module):
    """Two dense layers over the last axis with an activation between them.

    Args:
      in_features: input width.
      hidden_features: width between the layers.
      out_features: output width; by default the input width.
      activation: function, or module without randomness.
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
    """Return softmax attention, with float32 scores whatever the input's type.

    Args:
      q: queries (..., tokens, heads, channels), scaled here by `channels ** -0.5`.
      k: keys, of the same shape.
      v: values, of the same shape.
      bias: added to the scores (..., heads, tokens, tokens).
      dropout: applied to the unnormalized weights.

    Returns:
      (..., tokens, heads * channels).
    """
    q, k, v = (jnp.swapaxes(x, -3, -2) for x in (q, k, v))  # (..., heads, tokens, channels)
    scores = (q * q.shape[-1] ** -0.5) @ jnp.swapaxes(k, -2, -1)
    scores = scores.astype(jnp.float32)
    if bias is not None:
        scores = scores + bias
    # Dividing the product instead of the weights touches fewer entries.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = (dropout(weights).astype(v.dtype) @ v / total).astype(v.dtype)
    y = jnp.swapaxes(y, -3, -2)
    return y.reshape(*y.shape[:-2], -1)
