"""Layers that several families share.

Images and maps are (B, H, W, C). Kernels are HWIO, those of dense layers (in, out): the output axis
is the last. Parameters are float32; `dtype` is the type of the computation, by default the
input's. Layers hold no random state: dropout and stochastic depth take `rngs` in the call, and
`nnx.view(model, deterministic=..., use_running_average=...)` switches between training and
evaluation.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import platform
from bocb_jax.models.convolution import conv
from bocb_jax.models.norms import NORMS as NORMS
from bocb_jax.models.norms import BatchNorm as BatchNorm
from bocb_jax.models.norms import LayerScale as LayerScale
from bocb_jax.models.norms import norm as norm
from bocb_jax.models.norms import per_channel as per_channel
from bocb_jax.models.norms import response_norm as response_norm
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
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Return softmax attention, with float32 scores whatever the input's type.

    On GPUs, long sequences in bfloat16 go through cuDNN's fused kernel, which never writes the
    scores to memory. It has no second derivative.

    Args:
      q: queries (..., tokens, heads, channels), scaled here by `channels ** -0.5`.
      k: keys, of the same shape.
      v: values, of the same shape.
      bias: added to the scores (..., heads, tokens, tokens).
      dropout: applied to the unnormalized weights.

    Returns:
      (..., tokens, heads * channels).
    """
    if bias is None and dropout is None and _is_for_cudnn(q):
        return _fused_attention(q, k, v, "cudnn")
    q, k, v = (jnp.swapaxes(x, -3, -2) for x in (q, k, v))  # (..., heads, tokens, channels)
    scores = (q * q.shape[-1] ** -0.5) @ jnp.swapaxes(k, -2, -1)
    scores = scores.astype(jnp.float32)
    if bias is not None:
        scores = scores + bias
    # Dividing the product instead of the weights touches fewer entries.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if dropout is not None:
        weights = dropout(weights)
    y = (weights.astype(v.dtype) @ v / total).astype(v.dtype)
    y = jnp.swapaxes(y, -3, -2)
    return y.reshape(*y.shape[:-2], -1)


_FEWEST_FUSED = 128  # tokens; with 49, products of matrices are faster (docs/measured.md)


def _is_for_cudnn(q: jax.Array) -> bool:
    """Whether cuDNN takes queries (..., tokens, heads, channels), and is faster."""
    tokens, _, channels = q.shape[-3:]
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and channels <= 128 and channels % 8 == 0
    return fits and tokens >= _FEWEST_FUSED and platform.has_cudnn()


def _fused_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, form: Literal["xla", "cudnn"]
) -> jax.Array:
    """Return `attention` by JAX's operation of that name, in one of its implementations.

    An odd number of tokens is padded by one, which nothing attends to.
    """
    *leading, tokens, heads, channels = q.shape
    q, k, v = (x.reshape(-1, tokens, heads, channels) for x in (q, k, v))
    lengths = None
    if tokens % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = jnp.full(len(q), tokens, jnp.int32)
    y = jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation=form
    )  # scaled by channels ** -0.5
    return y[:, :tokens].reshape(*leading, tokens, heads * channels)
