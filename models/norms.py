"""Norms and gains per channel; `layers` passes them on."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError


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
      shards: number of equal consecutive parts of the batch that lie on devices of their own. Each
        computes its own moments, which are then averaged at once; with 1, variance follows mean.
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
        scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.groups = 1
        self.shards = 1
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
            whole = self.shards == 1 or len(x) % self.shards  # a trace may have a smaller batch
            mean, var = self._moments(x32) if whole else self._moments_of_shards(x32)
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

    def _moments_of_shards(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and variance of a sharded batch after one exchange between devices."""
        parts = x.reshape(self.shards, -1, *x.shape[1:])  # (shards, B / shards, ..., C)
        means, variances = jax.vmap(self._moments)(parts)
        # Relative to a value near the mean, or the difference of squares would lose digits.
        near = jax.lax.stop_gradient(self.mean[...])
        offsets = means - near[None]
        offset, second = offsets.mean(0), (variances + jnp.square(offsets)).mean(0)
        var = jnp.maximum(second - jnp.square(offset), 0.0)
        return near + offset, var

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

    def __init__(
        self, num_features: int, *, scale_init: Callable[..., jax.Array] = nnx.initializers.ones
    ):
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
    scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
    dtype: Any = None,
    rngs: nnx.Rngs,
) -> Callable[..., jax.Array]:
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
