"""TransNeXt (Shi, CVPR 2024, arXiv:2311.17132), with the names of the author's repository."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, check_lengths, register_family, sizes_of

TAPS = [(i, j) for i in range(3) for j in range(3)]  # the 3x3 window, in the order of its weights
INIT = layers.trunc_normal(0.02)


@dataclasses.dataclass(frozen=True)
class TransNeXtConfig:
    """Architecture of a TransNeXt; the defaults are TransNeXt-Tiny."""

    depths: tuple[int, ...] = (2, 2, 15, 2)
    widths: tuple[int, ...] = (72, 144, 288, 576)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    patch: int = 4  # stride of the first embedding; its kernel is 2 * patch - 1
    pretrain_size: int | None = None  # image size that scales positions; None: `image_size`
    epsilon: float = 1e-6  # of the norms outside the patch embeddings
    drop_path: float = 0.0
    dropout: float = 0.0  # after projections and in the channel mixer
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_lengths(self, "depths", "widths", "heads", "mlp_ratios")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise UserError(f"heads {heads} do not divide the width {width} of their stage.")


@functools.lru_cache(maxsize=64)
def relative_positions(
    size: tuple[int, ...], keys: tuple[int, ...], pretrain_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of queries relative to keys, in logarithmic coordinates.

    Args:
      size: (height, width) of the map of queries.
      keys: (height, width) of the grid to which the keys are pooled.
      pretrain_size: side of the map at which coordinates span -8 to 8.

    Returns:
      The distinct coordinates (m, 2), and the row among them of each pair: integers
      (queries, keys).
    """
    steps, rows = [], []
    for n, k in zip(size, keys, strict=True):
        query, cell = np.arange(n), np.arange(k)
        key = (cell * n // k + -(-(cell + 1) * n // k) - 1) / 2  # mean of the cell's positions
        offsets = (query[:, None] - key) / max(pretrain_size - 1, 1) * 8
        distinct, row = np.unique(offsets.round(9), return_inverse=True)
        steps.append(np.sign(distinct) * np.log2(np.abs(distinct) + 1) / 3)
        rows.append(row.reshape(n, k))
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 2)
    row = rows[0][:, None, :, None] * len(steps[1]) + rows[1][None, :, None, :]
    return grid.astype(np.float32), row.reshape(math.prod(size), math.prod(keys))


@functools.lru_cache(maxsize=64)
def inside_window(height: int, width: int) -> np.ndarray:
    """Return which of a pixel's nine neighbors lie in the map, booleans (height * width, 9)."""
    padded = np.pad(np.ones((height, width), bool), 1)
    return np.stack([padded[i : i + height, j : j + width].ravel() for i, j in TAPS], axis=-1)


def normalize(x: jax.Array) -> jax.Array:
    """Return x divided by its Euclidean norm over the last axis."""
    x32 = x.astype(jnp.float32)
    square = jnp.square(x32).sum(-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)


def neighbors(x: jax.Array) -> list[jax.Array]:
    """Return nine shifted copies of (B, H, W, ...), zero-padded, in the order of `TAPS`."""
    _, height, width = x.shape[:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), *((0, 0),) * (x.ndim - 3)))
    return [padded[:, i : i + height, j : j + width] for i, j in TAPS]


class CosineAttention(nnx.Module):
    """Common parts of both attentions: query embedding, temperature, position bias, projection."""

    def __init__(
        self,
        features: int,
        heads: int,
        pretrain_size: int,
        config: TransNeXtConfig,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        dense = functools.partial(layers.Linear, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.heads = heads
        self.pretrain_size = pretrain_size
        # softplus(temperature) is 1 / 0.24 initially.
        start = jnp.full((heads, 1, 1), math.log(math.expm1(1 / 0.24)), jnp.float32)
        self.temperature = nnx.Param(start, kind="scale")
        shape = (heads, 1, features // heads)
        self.query_embedding = nnx.Param(INIT(rngs.params(), shape), kind="embedding")
        self.cpb_fc1 = dense(2, 512)
        self.cpb_fc2 = dense(512, heads)
        self.proj = dense(features, features)
        self.attn_drop = nnx.Dropout(config.attention_dropout)
        self.proj_drop = nnx.Dropout(config.dropout)

    def split(self, x: jax.Array, parts: int) -> list[jax.Array]:
        """Split (..., parts * C) into `parts` arrays (..., heads, C / heads)."""
        x = x.reshape(*x.shape[:-1], parts, self.heads, -1)
        return [x[..., i, :, :] for i in range(parts)]

    def scale_queries(self, query: jax.Array, lengths: np.ndarray) -> jax.Array:
        """Add the query embedding and apply length-scaled temperature.

        Args:
          query: normalized, (B, H, W, heads, D).
          lengths: number of keys of each query, (1, H, W, 1, 1) or (1, 1, 1, 1, 1).
        """
        gain = nnx.softplus(self.temperature[None, None, None, :, 0]) * jnp.log(lengths)
        embedding = self.query_embedding[None, None, None, :, 0]
        return (query + embedding.astype(query.dtype)) * gain.astype(query.dtype)

    def position_bias(self, size: tuple[int, ...], keys: tuple[int, ...]) -> jax.Array:
        """Return the bias (1, H, W, heads, keys) of a map and a grid of keys, from a small MLP."""
        coordinates, rows = relative_positions(size, keys, self.pretrain_size)
        bias = self.cpb_fc2(nnx.relu(self.cpb_fc1(jnp.asarray(coordinates))))
        bias = jnp.take(bias.T, rows, axis=1)  # (heads, queries, keys)
        return bias.transpose(1, 0, 2).reshape(1, *size, self.heads, rows.shape[1])


class AggregatedAttention(CosineAttention):
    """Each pixel attends to its 3x3 window and to a pooled grid of the map, in one softmax."""

    def __init__(
        self,
        features: int,
        heads: int,
        reduction: int,
        pretrain_size: int,
        config: TransNeXtConfig,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        super().__init__(features, heads, pretrain_size, config, **kwargs)
        self.reduction = reduction
        width = features // heads
        self.q = layers.Linear(features, features, kernel_init=INIT, **kwargs)
        self.kv = layers.Linear(features, 2 * features, kernel_init=INIT, **kwargs)
        self.sr = layers.Conv(features, features, 1, **kwargs)
        self.norm = nnx.LayerNorm(features, epsilon=1e-5, **kwargs)
        self.relative_pos_bias_local = nnx.Param(
            layers.trunc_normal(0.0004)(rngs.params(), (heads, 9)), kind="embedding"
        )
        self.learnable_tokens = nnx.Param(INIT(rngs.params(), (heads, width, 9)), kind="token")
        self.learnable_bias = nnx.Param(jnp.zeros((heads, 1, 9), jnp.float32), kind="bias")

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        batch, height, width, features = x.shape
        grid = (height // self.reduction, width // self.reduction)
        inside = inside_window(height, width).reshape(1, height, width, 1, 9)
        query = normalize(self.split(self.q(x), 1)[0])  # (B, H, W, heads, D)
        scaled = self.scale_queries(query, inside.sum(-1, keepdims=True) + math.prod(grid))
        dtype = query.dtype

        # Scores of the nine neighbors, (B, H, W, heads, 9)
        key, value = self.split(self.kv(x), 2)
        keys, values = neighbors(normalize(key)), neighbors(value)
        local = jnp.stack([(scaled * k).sum(-1) for k in keys], axis=-1)
        local += self.relative_pos_bias_local[None, None, None].astype(dtype)
        local = jnp.where(inside, local, -jnp.inf)

        # Scores of the pooled grid, (B, H, W, heads, cells)
        pooled = layers.adaptive_avg_pool(layers.gelu(self.sr(x)), grid)
        pooled = self.norm(pooled.reshape(batch, -1, features))
        pool_key, pool_value = self.split(self.kv(pooled), 2)
        pool = jnp.einsum("bhwnd,bpnd->bhwnp", scaled, normalize(pool_key))
        pool += self.position_bias((height, width), grid).astype(dtype)

        # One softmax over both; learned tokens then add to the weights of the window alone.
        weights = jnp.concatenate([local, pool], axis=-1).astype(jnp.float32)
        weights = self.attn_drop(nnx.softmax(weights, axis=-1).astype(dtype), rngs=rngs)
        local, pool = weights[..., :9], weights[..., 9:]
        local += jnp.einsum("bhwnd,ndt->bhwnt", query, self.learnable_tokens[...].astype(dtype))
        local += self.learnable_bias[None, None, None, :, 0].astype(dtype)
        y = jnp.einsum("bhwnp,bpnd->bhwnd", pool, pool_value)
        y += sum(local[..., t : t + 1] * values[t] for t in range(9))
        return self.proj_drop(self.proj(y.reshape(x.shape)), rngs=rngs)


class Attention(CosineAttention):
    """Cosine attention over the whole map."""

    def __init__(
        self,
        features: int,
        heads: int,
        pretrain_size: int,
        config: TransNeXtConfig,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(features, heads, pretrain_size, config, dtype=dtype, rngs=rngs)
        self.qkv = layers.Linear(features, 3 * features, kernel_init=INIT, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        batch, *size, _ = x.shape
        query, key, value = self.split(self.qkv(x), 3)  # (B, H, W, heads, D) each
        scaled = self.scale_queries(normalize(query), np.full((1, 1, 1, 1, 1), math.prod(size)))
        # Keys and values as (B, H * W, heads, D)
        key, value = (a.reshape(batch, -1, *a.shape[3:]) for a in (normalize(key), value))
        weights = jnp.einsum("bhwnd,bpnd->bhwnp", scaled, key).astype(jnp.float32)
        weights += self.position_bias(tuple(size), tuple(size)).astype(jnp.float32)
        weights = self.attn_drop(nnx.softmax(weights, axis=-1).astype(value.dtype), rngs=rngs)
        y = jnp.einsum("bhwnp,bpnd->bhwnd", weights, value)
        return self.proj_drop(self.proj(y.reshape(x.shape)), rngs=rngs)


class ConvGLU(nnx.Module):
    """Gated linear unit over channels, with a depthwise 3x3 convolution in the gate."""

    def __init__(
        self, features: int, hidden: int, dropout: float, *, dtype: layers.Dtype, rngs: nnx.Rngs
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        hidden = 2 * hidden // 3
        self.fc1 = layers.Linear(features, 2 * hidden, kernel_init=INIT, **kwargs)
        self.dwconv = layers.depthwise_conv(hidden, 3, **kwargs)
        self.fc2 = layers.Linear(hidden, features, kernel_init=INIT, **kwargs)
        self.drop = nnx.Dropout(dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        gate, value = jnp.split(self.fc1(x), 2, axis=-1)  # (B, H, W, hidden) each
        x = self.drop(layers.gelu(self.dwconv(gate)) * value, rngs=rngs)
        return self.drop(self.fc2(x), rngs=rngs)


class Block(nnx.Module):
    """Attention and ConvGLU, each with a norm before, DropPath after and a shortcut."""

    def __init__(
        self,
        attention: CosineAttention,
        features: int,
        mlp_ratio: int,
        config: TransNeXtConfig,
        drop_path: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.norm1 = nnx.LayerNorm(features, epsilon=config.epsilon, **kwargs)
        self.attn = attention
        self.norm2 = nnx.LayerNorm(features, epsilon=config.epsilon, **kwargs)
        self.mlp = ConvGLU(features, mlp_ratio * features, config.dropout, **kwargs)
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = x + self.drop_path(self.attn(self.norm1(x), rngs=rngs), rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x), rngs=rngs), rngs=rngs)


class PatchEmbed(nnx.Module):
    """Convolution with overlapping windows, and LayerNorm."""

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel_size: int,
        strides: int,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        self.proj = layers.Conv(
            in_features, features, kernel_size, strides=strides, dtype=dtype, rngs=rngs
        )
        self.norm = nnx.LayerNorm(features, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.proj(x))


class TransNeXt(nnx.Module):
    """TransNeXt: aggregated attention in all stages but the last, which attends to the whole map.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: side of the images in pixels.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.

    Raises:
      UserError: the image size is not a multiple of the total stride.
    """

    def __init__(
        self,
        config: TransNeXtConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.num_stages = len(config.depths)
        stride = config.patch * 2 ** (self.num_stages - 1)
        if image_size % stride:
            raise UserError(
                f"TransNeXt takes images whose side is a multiple of {stride} pixels, "
                f"not {image_size}."
            )
        rates = layers.drop_path_rates(config.drop_path, config.depths)
        width = 3
        for i, (features, heads) in enumerate(zip(config.widths, config.heads, strict=True)):
            side = (config.pretrain_size or image_size) // (config.patch * 2**i)
            reduction = 2 ** (self.num_stages - 1 - i)
            kernel_size, step = (2 * config.patch - 1, config.patch) if i == 0 else (3, 2)
            blocks: nnx.List[Block] = nnx.List()
            for rate in rates[i]:
                attention: CosineAttention = (
                    AggregatedAttention(features, heads, reduction, side, config, **kwargs)
                    if reduction > 1
                    else Attention(features, heads, side, config, **kwargs)
                )
                blocks.append(
                    Block(attention, features, config.mlp_ratios[i], config, rate, **kwargs)
                )
            embed = PatchEmbed(width, features, kernel_size, step, **kwargs)
            setattr(self, f"patch_embed{i + 1}", embed)
            setattr(self, f"block{i + 1}", blocks)
            norm = nnx.LayerNorm(features, epsilon=config.epsilon, **kwargs)
            setattr(self, f"norm{i + 1}", norm)
            width = features
        self.head = layers.classifier(width, num_classes, kernel_init=INIT, **kwargs)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the normalized map of each stage."""
        parts = ("patch_embed", "block", "norm")
        stages = [[getattr(self, f"{p}{i + 1}") for p in parts] for i in range(self.num_stages)]
        return layers.stage_maps(x, stages, rngs)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = layers.global_average_pool(self.features(x, rngs=rngs)[-1])
        return self.head(x).astype(jnp.float32)


_BOCB = {"epsilon": 1e-5}
_size = sizes_of("DaiShiResearch/TransNeXt", "TransNeXt, official README", bocb=_BOCB)


register_family(
    TransNeXt,
    TransNeXtConfig,
    ModelCard(
        paper="Shi, TransNeXt: Robust Foveal Visual Perception for Vision Transformers, CVPR 2024, "
        "arXiv:2311.17132",
    ),
    {
        "transnext_micro": _size(
            "transnext_micro", 12_809_304, 82.5, drop_path=0.15,
            widths=(48, 96, 192, 384), heads=(2, 4, 8, 16),
        ),
        "transnext_t": _size("transnext_tiny", 28_258_960, 84.0, drop_path=0.25),
        "transnext_s": _size(
            "transnext_small", 49_741_564, 84.7, depths=(5, 5, 22, 5), drop_path=0.45
        ),
        "transnext_b": _size(
            "transnext_base", 89_721_496, 84.8, drop_path=0.6,
            depths=(5, 5, 23, 5), widths=(96, 192, 384, 768), heads=(4, 8, 16, 32),
        ),
        "transnext_mini": Variant(
            config={
                "depths": (1, 1, 1, 1),
                "widths": (16, 32, 48, 96),
                "heads": (2, 4, 4, 8),
                "mlp_ratios": (4, 4, 3, 3),
                "patch": 2,
            },
            bocb=_BOCB,
        ),
    },
    torch_names=[(r"\.mlp\.dwconv\.", ".mlp.dwconv.dwconv.")],
    torch_sources=["official"],
)  # fmt: skip
